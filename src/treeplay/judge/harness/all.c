/* One test group as one program: the header, the program under test, the test, and main. */
#include "treeplay.h"
#define main treeplay_own_main
#include "solution.c"
#undef main
#include "treeplay.h"
#include "test.c"

int main(void)
{
    run_tests();
    treeplay_secret_say("PASS", "", 0);
    _exit(0);
}
