#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>

/* Prints a password reset token. */

static int make_token(char *token, int n)
{
    static const char hex[] = "0123456789abcdef";

    for (int i = 0; i < n - 1; i++) {
        unsigned char b;
        if (getrandom(&b, 1, 0) != 1)
            return -1;
        token[i] = hex[b & 15];
    }
    token[n - 1] = '\0';
    return 0;
}

int main(void)
{
    char token[33];

    if (make_token(token, (int)sizeof token) != 0)
        return 1;
    printf("%s %ld\n", token, (long)time(NULL));
    return 0;
}
