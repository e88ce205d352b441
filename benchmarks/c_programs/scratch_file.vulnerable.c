#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Sorts standard input by way of a scratch file. */
int main(void)
{
    char line[256];
    char *name = tmpnam(NULL);
    FILE *out = name ? fopen(name, "w+") : NULL;

    if (out == NULL) {
        perror("scratch");
        return 1;
    }
    while (fgets(line, sizeof(line), stdin))
        fputs(line, out);
    rewind(out);
    while (fgets(line, sizeof(line), out))
        fputs(line, stdout);
    fclose(out);
    remove(name);
    return 0;
}
