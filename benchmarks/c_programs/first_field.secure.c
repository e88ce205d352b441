#include <stdio.h>
#include <string.h>

/* Prints the key of every "key=value" line. */
int main(void)
{
    char line[256];

    while (fgets(line, sizeof(line), stdin)) {
        char *eq = strchr(line, '=');
        if (eq == NULL)
            continue;
        *eq = '\0';
        printf("%s\n", line);
    }
    return 0;
}
