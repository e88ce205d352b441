/* Prints a conference badge. */
#include <stdio.h>
#include <string.h>

struct badge {
    int number;
    char name[24];
};

static void fill(struct badge *b, const char *who)
{
    char line[24];
    snprintf(line, sizeof line, "%s", who);
    memcpy(b->name, line, sizeof b->name);
    b->number = (int)strlen(line) + 100;
}

int main(int argc, char **argv)
{
    struct badge b;
    if (argc < 2) {
        fprintf(stderr, "usage: badge NAME\n");
        return 2;
    }
    memset(&b, 0, sizeof b);
    fill(&b, argv[1]);
    printf("#%d %.24s\n", b.number, b.name);
    return 0;
}
