#include <stdio.h>
#include <string.h>

#define TAG 8

int main(int argc, char **argv)
{
    char tag[TAG];
    const char *given = argc > 1 ? argv[1] : "none";

    strncpy(tag, given, TAG);
    printf("tag has %zu letters: ", strlen(tag));
    puts(tag);
    return 0;
}
