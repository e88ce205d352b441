#include <stdio.h>
#include <stdlib.h>

static const char *const DISHES[] = {"soup", "bread", "cheese", "apple", "tea"};
static const int PRICES[] = {450, 120, 380, 90, 200};

static int price_of(int choice)
{
    if (choice < 0)
        return -1;
    return PRICES[choice];
}

int main(void)
{
    char answer[16];
    int choice, price;

    for (choice = 0; choice < 5; choice++)
        printf("%d) %s\n", choice, DISHES[choice]);
    if (!fgets(answer, sizeof(answer), stdin))
        return 1;
    choice = atoi(answer);
    price = price_of(choice);
    if (price < 0) {
        puts("no such dish");
        return 1;
    }
    printf("%d.%02d\n", price / 100, price % 100);
    return 0;
}
