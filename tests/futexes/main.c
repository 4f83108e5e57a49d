/* futexes-c, and futexes-musl: what the C libraries make of futexes. */
#include "scenarios.h"

const char *const program_name = ON_GLIBC ? "futexes-c" : "futexes-musl";

const struct scenario *const catalog[] = {
	mutex_scenarios,
	place_scenarios,
	rwlock_scenarios,
	idle_scenarios,
	once_scenarios,
	raw_scenarios,
	NULL,
};
