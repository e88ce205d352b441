#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct image {
    uint32_t width, height;
    uint8_t *pixels;
};

static int image_new(struct image *im, uint32_t width, uint32_t height)
{
    uint32_t bytes = width * height;

    if (bytes == 0)
        return -1;
    im->pixels = malloc(bytes);
    if (im->pixels == NULL)
        return -1;
    im->width = width;
    im->height = height;
    for (uint32_t row = 0; row < height; row++)
        memset(im->pixels + (size_t)row * width, 0xff, width);
    return 0;
}

int main(int argc, char **argv)
{
    struct image im;

    if (argc != 3)
        return 2;
    if (image_new(&im, (uint32_t)strtoul(argv[1], NULL, 10), (uint32_t)strtoul(argv[2], NULL, 10)))
        return 1;
    printf("%ux%u\n", im.width, im.height);
    free(im.pixels);
    return 0;
}
