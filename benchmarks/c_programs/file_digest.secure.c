#include <openssl/evp.h>
#include <stdio.h>

/* Prints the digest a download must have. */
int main(int argc, char **argv)
{
    unsigned char block[4096], sum[EVP_MAX_MD_SIZE];
    unsigned int len = 0;
    size_t n;
    FILE *in;
    EVP_MD_CTX *ctx;

    if (argc != 2 || (in = fopen(argv[1], "rb")) == NULL)
        return 2;
    ctx = EVP_MD_CTX_new();
    if (ctx == NULL || EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(ctx);
        fclose(in);
        return 1;
    }
    while ((n = fread(block, 1, sizeof block, in)) > 0)
        EVP_DigestUpdate(ctx, block, n);
    EVP_DigestFinal_ex(ctx, sum, &len);
    for (unsigned int i = 0; i < len; i++)
        printf("%02x", sum[i]);
    putchar('\n');
    EVP_MD_CTX_free(ctx);
    fclose(in);
    return 0;
}
