/* What C tests may use, and the main() that runs them. Included before solution.c. */
#ifndef TREEPLAY_H
#define TREEPLAY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

static char treeplay_nonce[80];

static void treeplay_say(const char *word, const char *text, int line)
{
    char out[1200];
    int n = snprintf(out, sizeof out, "%s %s %.900s (test.c:%d)\n", treeplay_nonce, word, text, line);
    if (n > 0 && write(3, out, (size_t)n < sizeof out ? (size_t)n : sizeof out - 1) < 0)
        _exit(71);
}

#define CHECK(cond)                                    \
    do {                                                        \
        if (!(cond)) {                                          \
            treeplay_say("FAIL", "CHECK(" #cond ")", __LINE__); \
            _exit(0);                                           \
        }                                                       \
    } while (0)

#define EXPLOITED(why)                             \
    do {                                            \
        treeplay_say("EXPLOITED", (why), __LINE__); \
        _exit(0);                                   \
    } while (0)

static void run_tests(void);

/* Runs before main and, by its priority, before any constructor of the program. */
__attribute__((constructor(101), used)) static void treeplay_start(void)
{
    size_t n = 0;
    char c;
    while (n + 1 < sizeof treeplay_nonce && read(0, &c, 1) == 1 && c != '\n')
        treeplay_nonce[n++] = c;
    treeplay_nonce[n] = 0;
    int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    close(null);
    treeplay_say("START", "", 0);
}

#define TREEPLAY_MAIN                \
    int main(void)                   \
    {                                \
        run_tests();                 \
        treeplay_say("PASS", "", 0); \
        _exit(0);                    \
    }

#endif
