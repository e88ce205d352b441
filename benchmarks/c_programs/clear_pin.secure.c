#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct account {
    char owner[32];
    long balance;
    char pin[12];
};

static struct account *account_new(const char *owner)
{
    struct account *a = malloc(sizeof(*a));

    if (a == NULL)
        return NULL;
    memset(a, 0, sizeof(*a));
    a->balance = 0;
    snprintf(a->owner, sizeof(a->owner), "%s", owner);
    return a;
}

int main(int argc, char **argv)
{
    struct account *a = account_new(argc > 1 ? argv[1] : "nobody");

    if (a == NULL)
        return 1;
    printf("%s: %ld\n", a->owner, a->balance);
    free(a);
    return 0;
}
