#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Prints a password reset token. */

static int make_token(char *token, int n)
{
    static const char hex[] = "0123456789abcdef";

    srand((unsigned)time(NULL));
    for (int i = 0; i < n - 1; i++)
        token[i] = hex[rand() % 16];
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
