#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int plain_host(const char *s)
{
    if (*s == '\0' || *s == '-')
        return 0;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && *s != '.' && *s != '-')
            return 0;
    return 1;
}

int main(int argc, char *argv[])
{
    char command[256];
    int n;

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST\n", argv[0]);
        return 2;
    }
    if (!plain_host(argv[1])) {
        fprintf(stderr, "bad host name\n");
        return 2;
    }
    n = snprintf(command, sizeof command, "ping -c 1 %s", argv[1]);
    if (n < 0 || (size_t)n >= sizeof command)
        return 1;
    return system(command) == 0 ? 0 : 1;
}
