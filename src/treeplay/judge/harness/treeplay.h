/* What C tests may use. Included before solution.c; for each run the word "treeplay_secret" is
   replaced by a random one, so that the program cannot report a result itself. */
#ifndef TREEPLAY_H
#define TREEPLAY_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

static char treeplay_secret_nonce[80];

static void treeplay_secret_say(const char *word, const char *text, int line)
{
    char out[1200];
    int n = snprintf(out, sizeof out, "%s %s %.900s (test.c:%d)\n", treeplay_secret_nonce, word, text, line);
    if (n > 0 && write(3, out, (size_t)n < sizeof out ? (size_t)n : sizeof out - 1) < 0)
        _exit(71);
}

#endif

/* Defined anew behind solution.c, in case it defined them otherwise. */
#undef CHECK
#undef EXPLOITED

#define CHECK(cond)                                                    \
    do {                                                               \
        if (!(cond)) {                                                 \
            treeplay_secret_say("FAIL", "CHECK(" #cond ")", __LINE__); \
            _exit(0);                                                  \
        }                                                              \
    } while (0)

#define EXPLOITED(why)                                    \
    do {                                                  \
        treeplay_secret_say("EXPLOITED", (why), __LINE__); \
        _exit(0);                                         \
    } while (0)

#ifndef TREEPLAY_START
#define TREEPLAY_START

static void run_tests(void);

/* Runs before main and, by its priority, before any constructor of the program. */
__attribute__((constructor(101), used)) static void treeplay_secret_start(void)
{
    size_t n = 0;
    char c;
    while (n + 1 < sizeof treeplay_secret_nonce && read(0, &c, 1) == 1 && c != '\n')
        treeplay_secret_nonce[n++] = c;
    treeplay_secret_nonce[n] = 0;
    int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    close(null);
    treeplay_secret_say("START", "", 0);
}

#endif
