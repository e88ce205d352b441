#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { NUMBER, TEXT };

struct value {
    enum kind kind;
    union { long number; char *text; } as;
};

static void show(const struct value *v)
{
    if (v->kind == TEXT && v->as.text[0] != '\0')
        printf("text %s\n", v->as.text);
    else if (v->kind == NUMBER)
        printf("number %ld\n", v->as.number);
}

int main(int argc, char **argv)
{
    struct value v;
    char *end = "";

    if (argc < 2)
        return 2;
    v.as.number = strtol(argv[1], &end, 10);
    v.kind = NUMBER;
    if (*end != '\0') {
        v.kind = TEXT;
        v.as.text = argv[1];
    }
    show(&v);
    return 0;
}
