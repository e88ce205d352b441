#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER 8u

/* Drops the fixed header of a message read from standard input. */
int main(void)
{
	unsigned char raw[512];
	unsigned char *body;
	size_t got = fread(raw, 1, sizeof raw, stdin);
	size_t length;

	if (got < HEADER)
		return 1;
	length = got - HEADER;
	body = malloc(sizeof raw);
	if (!body)
		return 1;
	memcpy(body, raw + HEADER, length);
	fwrite(body, 1, length, stdout);
	free(body);
	return 0;
}
