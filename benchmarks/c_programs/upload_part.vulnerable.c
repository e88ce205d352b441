#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int open_part(void)
{
	char where[64];
	int fd;

	snprintf(where, sizeof(where), "/tmp/upload.%d", (int)getpid());
	fd = open(where, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd >= 0)
		unlink(where);
	return fd;
}

int main(void)
{
	char block[4096];
	ssize_t n, all = 0;
	int fd = open_part();

	if (fd < 0)
		return 1;
	while ((n = read(STDIN_FILENO, block, sizeof(block))) > 0) {
		if (write(fd, block, (size_t)n) != n)
			break;
		all += n;
	}
	printf("%zd bytes\n", all);
	close(fd);
	return 0;
}
