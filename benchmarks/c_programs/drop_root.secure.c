#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

/* Gives up root before it works for a client. */
static int become(uid_t uid, gid_t gid)
{
    if (setgid(gid) != 0)
        return -1;
    if (setuid(uid) != 0)
        return -1;
    return 0;
}

int main(void)
{
    if (become(1000, 1000) != 0) {
        perror("become");
        return 1;
    }
    printf("uid %d\n", (int)getuid());
    return 0;
}
