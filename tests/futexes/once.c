/* Initialization that another thread is at, and a lock inside the C library. */
#define _GNU_SOURCE
#include <stdio.h>

#include "scenarios.h"

pthread_once_t table_once = PTHREAD_ONCE_INIT;
/* pthread_once() hands nothing to the routine. */
static struct crew *initializing;

static void initialize_slowly(void)
{
	crew_keep(initializing);
}

FRAME int wait_for_once(struct visit *visit)
{
	int error;

	visit_begins(visit);
	error = pthread_once(visit->object, initialize_slowly);
	visit_ends(visit);
	return error;
}

static void hold_once(struct crew *crew)
{
	/* As good as new: nobody is inside. */
	table_once = (pthread_once_t)PTHREAD_ONCE_INIT;
	initializing = crew;
	check(pthread_once(&table_once, initialize_slowly), "pthread_once");
}

static const struct use once = {
	.name = "table_once",
	.futex_class = "once",
	.kind = LIBC_KIND("once"),
	.call_site = "wait_for_once",
	.object = &table_once,
	.size = sizeof(table_once),
	.has_owner = true,
	.hold = hold_once,
	.wait = wait_for_once,
};

/* The lock of a FILE. */

static FILE *journal;

static void open_journal(struct crew *crew)
{
	journal = fopen("/dev/null", "w");
	if (!journal)
		fail("cannot open /dev/null");
	crew_set_object(crew, journal);
}

FRAME int wait_for_stdio(struct visit *visit)
{
	visit_begins(visit);
	flockfile(visit->object);
	visit_ends(visit);
	return 0;
}

static void leave_stdio(struct visit *visit)
{
	funlockfile(visit->object);
}

static void hold_stdio(struct crew *crew)
{
	flockfile(journal);
	crew_keep(crew);
	funlockfile(journal);
}

/* glibc keeps the owner as a pthread_t, musl as a thread id. */
static const struct use stdio_lock = {
	.futex_class = "lock",
	.kind = LIBC_KIND("internal lock"),
	.call_site = "wait_for_stdio",
	.has_owner = true,
	.owner_is_kept = !ON_GLIBC,
	.excludes = true,
	.set_up = open_journal,
	.hold = hold_stdio,
	.wait = wait_for_stdio,
	.leave = leave_stdio,
};

const struct scenario once_scenarios[] = {
	{ "once", { &once } },
	{ "stdio", { &stdio_lock } },
	{ 0 },
};
