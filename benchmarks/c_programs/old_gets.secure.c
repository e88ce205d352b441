#include <stdio.h>
#include <string.h>

static int ask(const char *question, char *answer, int room)
{
    printf("%s ", question);
    fflush(stdout);
    if (fgets(answer, room, stdin) == NULL)
        return 0;
    answer[strcspn(answer, "\n")] = '\0';
    return 1;
}

int main(void)
{
    char colour[16];

    if (!ask("Your favourite colour?", colour, (int)sizeof colour))
        return 1;
    printf("So you like %s.\n", colour);
    return 0;
}
