#include <sqlite3.h>
#include <stdio.h>

static int find_mail(sqlite3 *db, const char *user)
{
    sqlite3_stmt *st = NULL;
    int rc;
    const char *sql = "SELECT mail FROM users WHERE name = ?1";

    rc = sqlite3_prepare_v2(db, sql, -1, &st, NULL);
    if (rc != SQLITE_OK)
        return 1;
    sqlite3_bind_text(st, 1, user, -1, SQLITE_TRANSIENT);
    while (sqlite3_step(st) == SQLITE_ROW)
        printf("%s\n", (const char *)sqlite3_column_text(st, 0));
    sqlite3_finalize(st);
    return 0;
}

int main(int argc, char **argv)
{
    sqlite3 *db;
    int rc;

    if (argc != 3 || sqlite3_open(argv[1], &db) != SQLITE_OK)
        return 2;
    rc = find_mail(db, argv[2]);
    sqlite3_close(db);
    return rc;
}
