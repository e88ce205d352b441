#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct config { char *host; int port; };

static void config_clear(struct config *c)
{
    free(c->host);
    c->host = NULL;
}

static int config_parse(struct config *c, const char *text)
{
    const char *colon = strchr(text, ':');
    size_t n = colon ? (size_t)(colon - text) : strlen(text);

    c->host = malloc(n + 1);
    if (c->host == NULL)
        return -1;
    memcpy(c->host, text, n);
    c->host[n] = '\0';
    if (colon == NULL) {
        config_clear(c);
        return -1;
    }
    c->port = atoi(colon + 1);
    return 0;
}

int main(int argc, char **argv)
{
    struct config c = {NULL, 0};
    int rc = config_parse(&c, argc > 1 ? argv[1] : "localhost:80");

    if (rc == 0)
        printf("%s %d\n", c.host, c.port);
    config_clear(&c);
    return rc ? 1 : 0;
}
