/* Reads [length byte][payload] and sends the payload back. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MSG_MAX 12

static ssize_t reply(const uint8_t *msg, size_t got, uint8_t *out, size_t room)
{
    size_t want;

    if (got < 1)
        return -1;
    want = msg[0];
    if (want > room || want > got - 1)
        return -1;
    memcpy(out, msg + 1, want);
    return (ssize_t)want;
}

int main(void)
{
    uint8_t msg[MSG_MAX], out[256];
    ssize_t n = read(STDIN_FILENO, msg, sizeof(msg));
    ssize_t len;

    if (n <= 0)
        return 1;
    len = reply(msg, (size_t)n, out, sizeof(out));
    if (len < 0)
        return 1;
    return write(STDOUT_FILENO, out, (size_t)len) == len ? 0 : 1;
}
