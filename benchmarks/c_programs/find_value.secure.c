#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints the sizes of the chunks in a length-prefixed file. */
int main(void)
{
    unsigned char data[1024];
    size_t n = fread(data, 1, sizeof data, stdin);
    size_t at = 0;

    while (at < n) {
        size_t step = data[at];

        if (step == 0)
            break;
        printf("%zu: %zu\n", at, step);
        at += step;
    }
    return 0;
}
