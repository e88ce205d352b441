#include <openssl/ssl.h>
#include <stdio.h>

/* Sets up the client side of a connection. */
static SSL_CTX *client_context(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    if (ctx == NULL)
        return NULL;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    if (SSL_CTX_set_default_verify_paths(ctx) != 1) {
        SSL_CTX_free(ctx);
        return NULL;
    }
    return ctx;
}

int main(void)
{
    SSL_CTX *ctx = client_context();

    if (ctx == NULL) {
        fputs("no context\n", stderr);
        return 1;
    }
    puts("ready");
    SSL_CTX_free(ctx);
    return 0;
}
