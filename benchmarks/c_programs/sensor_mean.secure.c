#include <stdio.h>
#include <string.h>

enum unit { CELSIUS, FAHRENHEIT, OTHER };

static enum unit unit_of(const char *s)
{
    if (strcmp(s, "C") == 0)
        return CELSIUS;
    if (strcmp(s, "F") == 0)
        return FAHRENHEIT;
    return OTHER;
}

static double to_celsius(double v, enum unit u)
{
    double out = 0.0;

    switch (u) {
    case CELSIUS:
        out = v;
        break;
    case FAHRENHEIT:
        out = (v - 32.0) * 5.0 / 9.0;
        break;
    default:
        fprintf(stderr, "unknown unit\n");
        break;
    }
    return out;
}

int main(void)
{
    double v;
    char unit[8];

    while (scanf("%lf %7s", &v, unit) == 2)
        printf("%.1f\n", to_celsius(v, unit_of(unit)));
    return 0;
}
