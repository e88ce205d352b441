#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

/* Seals standard input: writes nonce and cipher text. */
int main(void)
{
    unsigned char key[32], nonce[16], plain[1000], out[1100];
    int n = 0, tail = 0;
    size_t got = fread(plain, 1, sizeof plain, stdin);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

    if (ctx == NULL)
        return 1;
    if (RAND_bytes(key, sizeof key) != 1 || RAND_bytes(nonce, sizeof nonce) != 1)
        goto fail;
    if (EVP_EncryptInit_ex(ctx, EVP_aes_256_gcm(), NULL, key, nonce) != 1)
        goto fail;
    if (EVP_EncryptUpdate(ctx, out, &n, plain, (int)got) != 1)
        goto fail;
    if (EVP_EncryptFinal_ex(ctx, out + n, &tail) != 1)
        goto fail;
    fwrite(nonce, 1, sizeof nonce, stdout);
    fwrite(out, 1, (size_t)(n + tail), stdout);
    EVP_CIPHER_CTX_free(ctx);
    return 0;
fail:
    EVP_CIPHER_CTX_free(ctx);
    return 1;
}
