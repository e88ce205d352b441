#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char *argv[])
{
    char command[256];
    int n;

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST\n", argv[0]);
        return 2;
    }
    n = snprintf(command, sizeof command, "ping -c 1 %s", argv[1]);
    if (n < 0 || (size_t)n >= sizeof command)
        return 1;
    return system(command) == 0 ? 0 : 1;
}
