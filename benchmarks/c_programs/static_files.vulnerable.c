#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOT "/srv/www"

/* Writes the requested page to standard output. */
static int serve(const char *page)
{
    char path[PATH_MAX];
    char block[1024];
    size_t n;
    FILE *in;

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", ROOT, page) >= sizeof(path))
        return 414;
    in = fopen(path, "rb");
    if (in == NULL)
        return 404;
    while ((n = fread(block, 1, sizeof(block), in)) > 0)
        fwrite(block, 1, n, stdout);
    fclose(in);
    return 200;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    return serve(argv[1]) == 200 ? 0 : 1;
}
