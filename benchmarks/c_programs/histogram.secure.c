#include <stdio.h>
#include <string.h>

#define BUCKETS 16

typedef struct Histogram {
    unsigned counts[BUCKETS];
    unsigned total;
} Histogram;

static void add(Histogram *h, unsigned value)
{
    unsigned slot = value / 2;
    if (slot >= BUCKETS)
        slot = BUCKETS - 1;
    h->counts[slot]++;
    h->total++;
}

int main(void)
{
    Histogram h;
    unsigned v, i;

    memset(&h, 0, sizeof(h));
    while (scanf("%u", &v) == 1)
        add(&h, v);
    for (i = 0; i < BUCKETS; i++)
        printf("%2u: %u\n", i * 2, h.counts[i]);
    return h.total == 0;
}
