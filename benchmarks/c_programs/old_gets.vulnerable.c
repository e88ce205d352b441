#include <stdio.h>
#include <string.h>

char *gets(char *);

static int ask(const char *question, char *answer, int room)
{
    printf("%s ", question);
    fflush(stdout);
    (void)room;
    return gets(answer) != NULL;
}

int main(void)
{
    char colour[16];

    if (!ask("Your favourite colour?", colour, (int)sizeof colour))
        return 1;
    printf("So you like %s.\n", colour);
    return 0;
}
