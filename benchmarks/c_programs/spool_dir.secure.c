#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>

int main(int argc, char **argv)
{
    const char *dir = argc > 1 ? argv[1] : "/var/tmp/spool";

    umask(077);
    if (mkdir(dir, S_IRWXU) != 0 && errno != EEXIST) {
        perror(dir);
        return 1;
    }
    if (chmod(dir, 0700) != 0)
        return 1;
    printf("%s is ready\n", dir);
    return 0;
}
