#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Gives the digits of `text` as numbers, NULL when it holds anything else. */
static int *digits(const char *text, size_t *count)
{
    size_t n = strlen(text);
    int *out = malloc((n + 1) * sizeof(*out));

    if (!out)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        if (!isdigit((unsigned char)text[i]))
            return NULL;
        out[i] = text[i] - '0';
    }
    *count = n;
    return out;
}

int main(int argc, char **argv)
{
    size_t n = 0;
    int *d = digits(argc > 1 ? argv[1] : "0", &n);
    long sum = 0;

    if (d == NULL) {
        puts("digits only");
        return 1;
    }
    while (n > 0)
        sum += d[--n];
    printf("%ld\n", sum);
    free(d);
    return 0;
}
