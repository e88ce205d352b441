#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Opens the door for the right pass phrase. */

static int check(const char *given)
{
    const char *password = getenv("DOOR_PASSWORD");

    if (password == NULL || *password == '\0')
        return 0;
    return strcmp(given, password) == 0;
}

int main(void)
{
    char given[100];

    if (!fgets(given, sizeof(given), stdin))
        return 1;
    given[strcspn(given, "\n")] = '\0';
    if (!check(given)) {
        puts("no");
        return 1;
    }
    puts("open");
    return 0;
}
