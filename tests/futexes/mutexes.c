/* pthread mutexes of every kind, each in static storage. */
#define _GNU_SOURCE
#include <errno.h>
#include <time.h>

#include "scenarios.h"

pthread_mutex_t normal_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t recursive_mutex;
pthread_mutex_t errorcheck_mutex;
pthread_mutex_t adaptive_mutex;
pthread_mutex_t timed_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_mutex_t robust_mutex;
pthread_mutex_t pi_mutex;
pthread_mutex_t ceiling_mutex;

/* Longer than any round. */
enum { FAR_S = 3600 };

void hold_mutex(struct crew *crew)
{
	pthread_mutex_t *mutex = crew_object(crew);

	check(pthread_mutex_lock(mutex), "pthread_mutex_lock");
	crew_keep(crew);
	check(pthread_mutex_unlock(mutex), "pthread_mutex_unlock");
}

/* Outlives every timeout of the waiters. */
static void hold_until_all_gave_up(struct crew *crew)
{
	pthread_mutex_t *mutex = crew_object(crew);

	check(pthread_mutex_lock(mutex), "pthread_mutex_lock");
	crew_keep(crew);
	crew_await_through(crew, options.waiters);
	check(pthread_mutex_unlock(mutex), "pthread_mutex_unlock");
}

void leave_mutex(struct visit *visit)
{
	check(pthread_mutex_unlock(visit->object), "pthread_mutex_unlock");
}

/* The same code under different names: the call site tells the scenarios apart. */
#define WAIT_FUNCTION(name) \
	FRAME int name(struct visit *visit) \
	{ \
		int error; \
\
		visit_begins(visit); \
		error = pthread_mutex_lock(visit->object); \
		visit_ends(visit); \
		return error; \
	}

WAIT_FUNCTION(wait_for_mutex)
WAIT_FUNCTION(wait_for_recursive_mutex)
WAIT_FUNCTION(wait_for_errorcheck_mutex)
WAIT_FUNCTION(wait_for_adaptive_mutex)
WAIT_FUNCTION(wait_for_robust_mutex)
WAIT_FUNCTION(wait_for_pi_mutex)
WAIT_FUNCTION(wait_for_ceiling_mutex)

/* pthread_mutex_timedlock that succeeds. */
FRAME int wait_for_timed_mutex(struct visit *visit)
{
	struct timespec until = time_in(CLOCK_REALTIME, FAR_S * 1000000000ULL);
	int error;

	visit_begins(visit);
	error = pthread_mutex_timedlock(visit->object, &until);
	visit_ends(visit);
	return error;
}

/* pthread_mutex_timedlock that never does. */
FRAME int wait_in_vain_for_mutex(struct visit *visit)
{
	struct timespec until = time_in(CLOCK_REALTIME, options.hold_ns);
	int error;

	visit_begins(visit);
	error = pthread_mutex_timedlock(visit->object, &until);
	visit_ends(visit);
	visit->gave_up = error == ETIMEDOUT;
	return visit->gave_up ? 0 : error;
}

static void set_type(struct crew *crew, int type)
{
	pthread_mutexattr_t attributes;

	check(pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
	check(pthread_mutexattr_settype(&attributes, type), "pthread_mutexattr_settype");
	check(pthread_mutex_init(crew_object(crew), &attributes), "pthread_mutex_init");
}

static void set_up_recursive(struct crew *crew)
{
	set_type(crew, PTHREAD_MUTEX_RECURSIVE);
}

static void set_up_errorcheck(struct crew *crew)
{
	set_type(crew, PTHREAD_MUTEX_ERRORCHECK);
}

static void set_up_robust(struct crew *crew)
{
	pthread_mutexattr_t attributes;

	check(pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
	check(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST),
	      "pthread_mutexattr_setrobust");
	check(pthread_mutex_init(crew_object(crew), &attributes), "pthread_mutex_init");
}

static void set_up_pi(struct crew *crew)
{
	pthread_mutexattr_t attributes;

	check(pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
	check(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT),
	      "pthread_mutexattr_setprotocol");
	check(pthread_mutex_init(crew_object(crew), &attributes), "pthread_mutex_init");
}

#ifdef __GLIBC__
static void set_up_adaptive(struct crew *crew)
{
	set_type(crew, PTHREAD_MUTEX_ADAPTIVE_NP);
}

/* glibc raises priorities only of threads that have one: all who take this mutex have to be real-time threads. */
static int set_policy(int policy, int priority)
{
	struct sched_param parameter = { .sched_priority = priority };

	return pthread_setschedparam(pthread_self(), policy, &parameter);
}

static void become_realtime(struct visit *visit)
{
	(void)visit;
	check(set_policy(SCHED_FIFO, 1), "pthread_setschedparam");
}

static void hold_ceiling(struct crew *crew)
{
	become_realtime(NULL);
	hold_mutex(crew);
}

static void set_up_ceiling(struct crew *crew)
{
	pthread_mutexattr_t attributes;

	check(pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
	check(pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_PROTECT),
	      "pthread_mutexattr_setprotocol");
	check(pthread_mutexattr_setprioceiling(&attributes, 2), "pthread_mutexattr_setprioceiling");
	check(pthread_mutex_init(crew_object(crew), &attributes), "pthread_mutex_init");
}

static const char *no_ceiling(void)
{
	int error = set_policy(SCHED_FIFO, 1);

	if (error == EPERM)
		return "no permission for real-time priorities";
	check(error, "pthread_setschedparam");
	check(set_policy(SCHED_OTHER, 0), "pthread_setschedparam");
	return NULL;
}

static const char *no_adaptive(void)
{
	return NULL;
}
#else
#define set_up_adaptive NULL
#define set_up_ceiling NULL
#define become_realtime NULL
#define hold_ceiling NULL

static const char *no_ceiling(void)
{
	return "musl has no priority ceilings";
}

static const char *no_adaptive(void)
{
	return "musl has no adaptive mutexes";
}
#endif

/* glibc keeps the owner of all of them, musl of all but the normal ones. */
#define MUTEX_USE(mutex, function, kept) \
	.name = #mutex, .futex_class = "lock", .call_site = #function, .object = &(mutex), \
	.size = sizeof(pthread_mutex_t), .has_owner = true, .owner_is_kept = kept, \
	.excludes = true, .hold = hold_mutex, .wait = function, .leave = leave_mutex

static const struct use mutex = {
	MUTEX_USE(normal_mutex, wait_for_mutex, ON_GLIBC),
	.kind = LIBC_KIND("mutex"),
};
static const struct use recursive = {
	MUTEX_USE(recursive_mutex, wait_for_recursive_mutex, true),
	.kind = LIBC_KIND("mutex"),
	.set_up = set_up_recursive,
};
static const struct use errorcheck = {
	MUTEX_USE(errorcheck_mutex, wait_for_errorcheck_mutex, true),
	.kind = LIBC_KIND("mutex"),
	.set_up = set_up_errorcheck,
};
static const struct use adaptive = {
	MUTEX_USE(adaptive_mutex, wait_for_adaptive_mutex, true),
	.kind = LIBC_KIND("mutex"),
	.set_up = set_up_adaptive,
};
static const struct use timed = {
	MUTEX_USE(timed_mutex, wait_for_timed_mutex, ON_GLIBC),
	.kind = LIBC_KIND("mutex"),
};
static const struct use in_vain = {
	.name = "timed_mutex",
	.futex_class = "lock",
	.kind = LIBC_KIND("mutex"),
	.call_site = "wait_in_vain_for_mutex",
	.object = &timed_mutex,
	.size = sizeof(timed_mutex),
	.has_owner = true,
	.owner_is_kept = ON_GLIBC,
	.hold = hold_until_all_gave_up,
	.wait = wait_in_vain_for_mutex,
	.leave = leave_mutex,
};
static const struct use robust = {
	MUTEX_USE(robust_mutex, wait_for_robust_mutex, true),
	.kind = ON_GLIBC ? "glibc robust mutex" : "musl mutex",
	.set_up = set_up_robust,
};
static const struct use pi = {
	MUTEX_USE(pi_mutex, wait_for_pi_mutex, true),
	.kind = "PI mutex",
	.set_up = set_up_pi,
};
static const struct use ceiling = {
	.name = "ceiling_mutex",
	.futex_class = "lock",
	.kind = "glibc ceiling mutex",
	.call_site = "wait_for_ceiling_mutex",
	.object = &ceiling_mutex,
	.size = sizeof(ceiling_mutex),
	.has_owner = true,
	.owner_is_kept = true,
	.excludes = true,
	.set_up = set_up_ceiling,
	.hold = hold_ceiling,
	.before = become_realtime,
	.wait = wait_for_ceiling_mutex,
	.leave = leave_mutex,
};

const struct scenario mutex_scenarios[] = {
	{ "mutex", { &mutex } },
	{ "mutex-recursive", { &recursive } },
	{ "mutex-errorcheck", { &errorcheck } },
	{ "mutex-adaptive", { &adaptive }, no_adaptive },
	{ "mutex-timed", { &timed } },
	{ "mutex-timed-out", { &in_vain } },
	{ "mutex-robust", { &robust } },
	{ "mutex-pi", { &pi } },
	{ "mutex-ceiling", { &ceiling }, no_ceiling },
	{ 0 },
};
