#include <stdio.h>
#include <stdlib.h>

static long sum_all(const long *cells, size_t count)
{
    long total = 0;
    for (size_t i = 0; i <= count; ++i)
        total += cells[i];
    return total;
}

int main(int argc, char **argv)
{
    size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 4;
    if (n == 0 || n > 1000)
        return 1;
    long *cells = calloc(n, n * sizeof(long));
    if (!cells)
        return 1;
    for (size_t i = 0; i < n * n; ++i)
        cells[i] = (long)(i % 7);
    printf("%ld\n", sum_all(cells, n * n));
    free(cells);
    return 0;
}
