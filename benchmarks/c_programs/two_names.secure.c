#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char *argv[]) {
  char *first = NULL, *second = NULL;

  first = strdup(argc > 1 ? argv[1] : "ada");
  if (first == NULL) return 1;
  if (argc > 2) {
    second = strdup(argv[2]);
    if (second == NULL) {
      free(first);
      return 1;
    }
  } else {
    second = strdup(first);
    if (second == NULL) {
      free(first);
      return 1;
    }
  }
  printf("%s and %s\n", first, second);
  free(second);
  free(first);
  return 0;
}
