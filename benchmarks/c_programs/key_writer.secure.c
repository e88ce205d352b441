#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int save_key(const char *path, const char *key)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    size_t n = strlen(key);
    int ok;

    if (fd == -1)
        return -1;
    ok = write(fd, key, n) == (ssize_t)n;
    close(fd);
    return ok ? 0 : -1;
}

int main(int argc, char **argv)
{
    char key[80];

    if (argc != 2 || fgets(key, sizeof key, stdin) == NULL)
        return 2;
    return save_key(argv[1], key) == 0 ? 0 : 1;
}
