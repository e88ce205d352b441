#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Skips blanks in a copy of the first argument. */
int main(int argc, char **argv)
{
    char *copy = strdup(argc > 1 ? argv[1] : "  hello");
    char *at = copy;

    if (copy == NULL)
        return 1;
    while (*at == ' ')
        at++;
    printf("<%s>\n", at);
    free(copy);
    return 0;
}
