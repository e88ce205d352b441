#include <stdio.h>
#include <syslog.h>

/* Takes notes from standard input into the system log. */

int main(void) {
	char note[200];

	openlog("audit", LOG_PID, LOG_USER);
	while (fgets(note, sizeof note, stdin) != NULL) {
		if (note[0] == '#')
			continue;
		syslog(LOG_NOTICE, note);
	}
	closelog();
	return 0;
}
