#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Counts the lines of a file by asking wc. */
static long count_lines(const char *path)
{
    int ends[2], status;
    char out[64];
    ssize_t n;
    pid_t child;

    if (pipe(ends) != 0)
        return -1;
    child = fork();
    if (child < 0)
        return -1;
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        execl("/usr/bin/wc", "wc", "-l", "--", path, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    n = read(ends[0], out, sizeof(out) - 1);
    close(ends[0]);
    if (waitpid(child, &status, 0) < 0 || n <= 0)
        return -1;
    out[n] = '\0';
    return strtol(out, NULL, 10);
}

int main(void)
{
    char path[256];

    if (fgets(path, sizeof(path), stdin) == NULL)
        return 1;
    path[strcspn(path, "\n")] = '\0';
    printf("%ld\n", count_lines(path));
    return 0;
}
