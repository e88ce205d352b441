#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    char *buffer = malloc(128);
    int failed = 0;

    if (!buffer)
        return 1;
    snprintf(buffer, 128, "status of %s", argc > 1 ? argv[1] : "all");
    if (argc > 1 && strcmp(argv[1], "fail") == 0) {
        failed = 1;
    }
    if (failed)
        fprintf(stderr, "error: %s\n", buffer);
    else
        puts(buffer);
    free(buffer);
    return failed;
}
