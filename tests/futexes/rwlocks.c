/* pthread reader-writer locks. */
#define _GNU_SOURCE
#include "scenarios.h"

pthread_rwlock_t table_rwlock = PTHREAD_RWLOCK_INITIALIZER;

FRAME int wait_for_rwlock_read(struct visit *visit)
{
	int error;

	visit_begins(visit);
	error = pthread_rwlock_rdlock(visit->object);
	visit_ends(visit);
	return error;
}

FRAME int wait_for_rwlock_write(struct visit *visit)
{
	int error;

	visit_begins(visit);
	error = pthread_rwlock_wrlock(visit->object);
	visit_ends(visit);
	return error;
}

static void leave_rwlock(struct visit *visit)
{
	check(pthread_rwlock_unlock(visit->object), "pthread_rwlock_unlock");
}

static void hold_for_writing(struct crew *crew)
{
	check(pthread_rwlock_wrlock(&table_rwlock), "pthread_rwlock_wrlock");
	crew_keep(crew);
	check(pthread_rwlock_unlock(&table_rwlock), "pthread_rwlock_unlock");
}

static void hold_for_reading(struct crew *crew)
{
	check(pthread_rwlock_rdlock(&table_rwlock), "pthread_rwlock_rdlock");
	crew_keep(crew);
	check(pthread_rwlock_unlock(&table_rwlock), "pthread_rwlock_unlock");
}

#define RWLOCK_USE \
	.name = "table_rwlock", .futex_class = "lock", .kind = LIBC_KIND("rwlock"), \
	.object = &table_rwlock, .size = sizeof(table_rwlock), .has_owner = true, \
	.leave = leave_rwlock

static const struct use readers = {
	RWLOCK_USE,
	.side = "read",
	.call_site = "wait_for_rwlock_read",
	.owner_is_kept = ON_GLIBC,
	.hold = hold_for_writing,
	.wait = wait_for_rwlock_read,
};
static const struct use writers_behind_reader = {
	RWLOCK_USE,	  .side = "write",	    .call_site = "wait_for_rwlock_write",
	.excludes = true, .hold = hold_for_reading, .wait = wait_for_rwlock_write,
};
static const struct use writers_behind_writer = {
	RWLOCK_USE,
	.side = "write",
	.call_site = "wait_for_rwlock_write",
	.owner_is_kept = ON_GLIBC,
	.excludes = true,
	.hold = hold_for_writing,
	.wait = wait_for_rwlock_write,
};

const struct scenario rwlock_scenarios[] = {
	{ "rwlock-read", { &readers } },
	{ "rwlock-write-behind-reader", { &writers_behind_reader } },
	{ "rwlock-write-behind-writer", { &writers_behind_writer } },
	{ 0 },
};
