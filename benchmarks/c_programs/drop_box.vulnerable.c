#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Removes a named message from the drop box. */

static int name_ok(const char *name) { return *name != '\0' && strlen(name) < 100; }

int main(void)
{
  char name[128];
  char path[256];

  if (!fgets(name, sizeof name, stdin))
    return 1;
  name[strcspn(name, "\r\n")] = 0;
  if (!name_ok(name)) {
    fputs("bad name\n", stderr);
    return 1;
  }
  strcpy(path, "/var/spool/dropbox/");
  strcat(path, name);
  if (unlink(path) != 0) {
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    return 1;
  }
  return 0;
}
