#include <stdio.h>
#include <string.h>

struct animal {
    const char *name;
    int legs;
};

static struct animal zoo[] = {{"ant", 6}, {"hen", 2}, {"cow", 4}};

static struct animal *lookup(const char *name)
{
    for (size_t i = 0; i < sizeof zoo / sizeof *zoo; i++)
        if (strcmp(zoo[i].name, name) == 0)
            return &zoo[i];
    return NULL;
}

int main(int argc, char **argv)
{
    struct animal *found;

    if (argc < 2)
        return 2;
    found = lookup(argv[1]);
    printf("%s has %d legs\n", argv[1], found->legs);
    return 0;
}
