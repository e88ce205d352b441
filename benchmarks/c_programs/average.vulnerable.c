#include <stdio.h>

int main(void)
{
    int n = 0, x;
    int sum = 0;

    while (n < 1000 && scanf("%d", &x) == 1) {
        if (x < -1000 || x > 1000)
            return 1;
        sum += x;
        n++;
    }
    printf("mean %d\n", sum / n);
    return 0;
}
