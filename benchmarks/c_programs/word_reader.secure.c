#include <ctype.h>
#include <stdio.h>

/* Reads one word from standard input and prints it in capitals. */

int main(void) {
  char word[32];
  int i;

  if (scanf("%31s", word) != 1)
    return 1;
  for (i = 0; word[i] != '\0'; i++) {
    word[i] = (char)toupper((unsigned char)word[i]);
  }
  printf("%s\n", word);
  return 0;
}
