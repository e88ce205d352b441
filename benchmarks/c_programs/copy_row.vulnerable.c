#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A growing list of text cells. */
struct cells
{
  char **items;
  size_t used;
};

static int
push_cell (struct cells *c, const char *text)
{
  char *copy = malloc (strlen (text));
  char **more;

  if (!copy)
    return -1;
  strcpy (copy, text);
  more = realloc (c->items, (c->used + 1) * sizeof *more);
  if (!more)
    {
      free (copy);
      return -1;
    }
  c->items = more;
  c->items[c->used++] = copy;
  return 0;
}

int
main (int argc, char **argv)
{
  struct cells c = { NULL, 0 };
  int i;

  for (i = 1; i < argc; i++)
    if (push_cell (&c, argv[i]) != 0)
      return 1;
  while (c.used > 0)
    {
      puts (c.items[--c.used]);
      free (c.items[c.used]);
    }
  free (c.items);
  return 0;
}
