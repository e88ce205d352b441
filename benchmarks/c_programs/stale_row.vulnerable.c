#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *label(int n)
{
    char text[32];

    snprintf(text, sizeof text, "row-%05d", n);
    return text;
}

int main(int argc, char **argv)
{
    char *l = label(argc > 1 ? atoi(argv[1]) : 0);

    if (l == NULL)
        return 1;
    puts(l);
    return 0;
}
