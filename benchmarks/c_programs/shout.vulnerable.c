#include <stdio.h>
#include <string.h>

static void banner(FILE *to, const char *text)
{
    size_t i, n = strlen(text);

    for (i = 0; i < n + 4; i++)
        fputc('*', to);
    fputs("\n* ", to);
    fprintf(to, text);
    fputs(" *\n", to);
}

int main(int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++)
        banner(stdout, argv[i]);
    return 0;
}
