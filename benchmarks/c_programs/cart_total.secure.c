#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

static int read_int(const char *text, int *out)
{
    char *end;
    long v = strtol(text, &end, 10);

    if (*text == '\0' || *end != '\0' || v < 0 || v > INT_MAX)
        return -1;
    *out = (int)v;
    return 0;
}

static int line_total(int cents, int pieces, int *total)
{
    if (pieces != 0 && cents > INT_MAX / pieces)
        return -1;
    *total = cents * pieces;
    return 0;
}

int main(int argc, char **argv)
{
    int cents, pieces, total;

    if (argc != 3 || read_int(argv[1], &cents) || read_int(argv[2], &pieces))
        return 2;
    if (line_total(cents, pieces, &total) != 0) {
        fputs("too much\n", stderr);
        return 1;
    }
    printf("%d.%02d\n", total / 100, total % 100);
    return 0;
}
