#include <stdio.h>
#include <stdlib.h>

static int show_first(const char *path, int lines)
{
    char buf[512];
    FILE *f = fopen(path, "r");

    if (f == NULL) {
        perror(path);
        return -1;
    }
    while (lines-- > 0) {
        if (fgets(buf, sizeof buf, f) == NULL)
            break;
        fputs(buf, stdout);
    }
    fclose(f);
    return 0;
}

int main(int argc, char **argv)
{
    int bad = 0;
    for (int i = 1; i < argc; i++)
        bad |= show_first(argv[i], 10) != 0;
    return bad;
}
