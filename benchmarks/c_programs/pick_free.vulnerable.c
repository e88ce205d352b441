#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Skips blanks in a copy of the first argument. */
int main(int argc, char **argv)
{
    char *copy = strdup(argc > 1 ? argv[1] : "  hello");

    if (copy == NULL)
        return 1;
    while (*copy == ' ')
        copy++;
    printf("<%s>\n", copy);
    free(copy);
    return 0;
}
