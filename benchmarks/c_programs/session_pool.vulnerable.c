#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct session {
    int id;
    char user[32];
    struct session *next;
} session_t;

static session_t *head;

static session_t *open_session(const char *user)
{
    session_t *s = calloc(1, sizeof(*s));
    if (s == NULL)
        exit(1);
    s->id = head ? head->id + 1 : 1;
    snprintf(s->user, sizeof(s->user), "%s", user);
    s->next = head;
    head = s;
    return s;
}

static void close_all(void)
{
    for (session_t *s = head; s != NULL; s = s->next)
        free(s);
    head = NULL;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        printf("opened %d\n", open_session(argv[i])->id);
    close_all();
    return 0;
}
