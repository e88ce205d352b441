#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LINE_MAX_LEN 64

static char *
make_line(const char *level, const char *text)
{
	char *line = malloc(LINE_MAX_LEN);

	if (line == NULL)
		return NULL;
	sprintf(line, "[%s] %ld %s", level, (long)time(NULL), text);
	return line;
}

int
main(int argc, char *argv[])
{
	char *line;

	line = make_line("INFO", argc > 1 ? argv[1] : "started");
	if (line == NULL)
		return EXIT_FAILURE;
	puts(line);
	free(line);
	return EXIT_SUCCESS;
}
