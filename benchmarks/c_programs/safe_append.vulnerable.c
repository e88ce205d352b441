#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Appends a line to a file, never through a link. */
static int append(const char *path, const char *text)
{
    struct stat st;
    int fd;

    if (lstat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return -1;
    fd = open(path, O_WRONLY | O_APPEND);
    if (fd < 0)
        return -1;
    if (write(fd, text, strlen(text)) < 0) {
        close(fd);
        return -1;
    }
    return close(fd);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    return append(argv[1], argv[2]) == 0 ? 0 : 1;
}
