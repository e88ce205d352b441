#include <stdio.h>
#include <stdlib.h>

struct table {
	int *slot;
	size_t n;
};

static int table_init(struct table *t, size_t n)
{
	size_t i;

	t->n = n;
	t->slot = malloc(n * sizeof(int));
	if (t->slot == NULL)
		return -1;
	for (i = 0; i < n; i++)
		t->slot[i] = -1;
	return 0;
}

int main(void)
{
	struct table t;

	if (table_init(&t, 4096) != 0)
		return 1;
	printf("%d of %zu\n", t.slot[0], t.n);
	free(t.slot);
	return 0;
}
