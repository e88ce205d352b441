#include <stdio.h>
#include <stdlib.h>

struct split { int each; int rest; };

static struct split share(int total, int people)
{
    struct split s;

    s.each = total / people;
    s.rest = total % people;
    return s;
}

int main(int argc, char **argv)
{
    int total, people;
    struct split s;

    if (argc < 3)
        return 2;
    total = (int)strtol(argv[1], NULL, 10);
    people = (int)strtol(argv[2], NULL, 10);
    if (people <= 0)
        return 2;
    s = share(total, people);
    printf("%d each, %d left\n", s.each, s.rest);
    return 0;
}
