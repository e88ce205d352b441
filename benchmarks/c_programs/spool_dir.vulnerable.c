#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "/var/tmp/spool";

    umask(0);
    if (mkdir(dir, S_IRWXU | S_IRWXG | S_IRWXO) != 0 && errno != EEXIST) {
        perror(dir);
        return 1;
    }
    if (chmod(dir, 0777) != 0)
        return 1;
    printf("%s is ready\n", dir);
    return 0;
}
