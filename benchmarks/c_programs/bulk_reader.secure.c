#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_RECORD (1u << 20)

/* A record is a 32 bit length and as many bytes. */
static unsigned char *read_record(FILE *in, uint32_t *len)
{
    unsigned char *data;

    if (fread(len, sizeof(*len), 1, in) != 1)
        return NULL;
    if (*len > MAX_RECORD)
        return NULL;
    data = malloc(*len ? *len : 1);
    if (data == NULL)
        return NULL;
    if (fread(data, 1, *len, in) != *len) {
        free(data);
        return NULL;
    }
    return data;
}

int main(void)
{
    uint32_t len;
    unsigned char *rec;

    while ((rec = read_record(stdin, &len)) != NULL) {
        printf("%u bytes\n", len);
        free(rec);
    }
    return (int)(MAX_RECORD & 1u);
}
