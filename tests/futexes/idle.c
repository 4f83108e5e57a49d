/* Waits of threads that have nothing to do, and, in `mix`, such waits beside contention. */
#define _GNU_SOURCE
#include <errno.h>
#include <semaphore.h>
#include <time.h>

#include "scenarios.h"

/* Longer than any round. */
enum { FAR_S = 3600 };

static pthread_mutex_t work_mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t work_condition = PTHREAD_COND_INITIALIZER;
pthread_cond_t tick_condition;
static unsigned int work_available;

sem_t free_slots;
pthread_barrier_t phase_barrier;

/* Condition variables */

/* Takes one piece of work when there is one. */
static inline int take_work(struct visit *visit)
{
	int error = pthread_mutex_lock(&work_mutex);

	visit_begins(visit);
	while (!error && !work_available)
		error = pthread_cond_wait(visit->object, &work_mutex);
	visit_ends(visit);
	if (!error)
		work_available--;
	pthread_mutex_unlock(&work_mutex);
	return error;
}

FRAME int wait_for_signal(struct visit *visit)
{
	return take_work(visit);
}

FRAME int wait_for_job(struct visit *visit)
{
	return take_work(visit);
}

FRAME int wait_for_broadcast(struct visit *visit)
{
	return take_work(visit);
}

/* Nobody signals. */
static inline int wait_until(struct visit *visit, const struct timespec *until)
{
	int error = pthread_mutex_lock(&work_mutex);

	visit_begins(visit);
	while (!error)
		error = pthread_cond_timedwait(visit->object, &work_mutex, until);
	visit_ends(visit);
	pthread_mutex_unlock(&work_mutex);
	visit->gave_up = error == ETIMEDOUT;
	return visit->gave_up ? 0 : error;
}

FRAME int wait_for_time(struct visit *visit)
{
	struct timespec until = time_in(CLOCK_REALTIME, options.hold_ns);

	return wait_until(visit, &until);
}

FRAME int wait_for_monotonic_time(struct visit *visit)
{
	struct timespec until = time_in(CLOCK_MONOTONIC, options.hold_ns);

	return wait_until(visit, &until);
}

static void add_work(unsigned int pieces)
{
	check(pthread_mutex_lock(&work_mutex), "pthread_mutex_lock");
	work_available += pieces;
	check(pthread_mutex_unlock(&work_mutex), "pthread_mutex_unlock");
}

/* One after the other, so that they do not meet at the mutex. */
static void signal_each(struct crew *crew)
{
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++) {
		add_work(1);
		check(pthread_cond_signal(crew_object(crew)), "pthread_cond_signal");
		crew_await_through(crew, i + 1);
	}
}

/* Jobs come in one by one, with the same time between them as before the first. */
static void trickle_jobs(struct crew *crew)
{
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++) {
		if (i)
			pause_ns(options.hold_ns);
		add_work(1);
		check(pthread_cond_signal(crew_object(crew)), "pthread_cond_signal");
		crew_await_through(crew, i + 1);
	}
}

static void broadcast(struct crew *crew)
{
	crew_keep(crew);
	add_work(options.waiters);
	check(pthread_cond_broadcast(crew_object(crew)), "pthread_cond_broadcast");
}

static void let_time_pass(struct crew *crew)
{
	crew_keep(crew);
	crew_await_through(crew, options.waiters);
}

static void set_up_monotonic(struct crew *crew)
{
	pthread_condattr_t attributes;

	check(pthread_condattr_init(&attributes), "pthread_condattr_init");
	check(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC), "pthread_condattr_setclock");
	check(pthread_cond_init(crew_object(crew), &attributes), "pthread_cond_init");
}

/* Semaphores */

FRAME int wait_for_semaphore(struct visit *visit)
{
	int result;

	visit_begins(visit);
	result = sem_wait(visit->object);
	visit_ends(visit);
	return result ? errno : 0;
}

FRAME int wait_for_timed_semaphore(struct visit *visit)
{
	struct timespec until = time_in(CLOCK_REALTIME, FAR_S * 1000000000ULL);
	int result;

	visit_begins(visit);
	result = sem_timedwait(visit->object, &until);
	visit_ends(visit);
	return result ? errno : 0;
}

static void set_up_semaphore(struct crew *crew)
{
	check_call(sem_init(crew_object(crew), 0, 0), "sem_init");
}

static void post_each(struct crew *crew)
{
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++) {
		check_call(sem_post(crew_object(crew)), "sem_post");
		crew_await_through(crew, i + 1);
	}
}

/* Barriers */

FRAME int wait_for_barrier(struct visit *visit)
{
	int result;

	visit_begins(visit);
	result = pthread_barrier_wait(visit->object);
	visit_ends(visit);
	return result == PTHREAD_BARRIER_SERIAL_THREAD ? 0 : result;
}

static void set_up_barrier(struct crew *crew)
{
	check(pthread_barrier_init(crew_object(crew), NULL, options.waiters + 1),
	      "pthread_barrier_init");
}

/* The holder is the last that the barrier waits for. */
static void come_last(struct crew *crew)
{
	crew_keep(crew);
	pthread_barrier_wait(crew_object(crew));
}

/* Joins */

static int may_end = -1;

static void *short_life(void *nothing)
{
	event_wait(may_end);
	return nothing;
}

static void start_short_life(struct visit *visit)
{
	pthread_t thread;

	check(pthread_create(&thread, NULL, short_life, NULL), "pthread_create");
	visit->prepared = (uintptr_t)thread;
}

FRAME int wait_for_join(struct visit *visit)
{
	int error;

	visit_begins(visit);
	error = pthread_join((pthread_t)visit->prepared, NULL);
	visit_ends(visit);
	return error;
}

static void set_up_join(struct crew *crew)
{
	(void)crew;
	may_end = event_new();
}

static void end_each(struct crew *crew)
{
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++) {
		event_signal(may_end);
		crew_await_through(crew, i + 1);
	}
}

/*
 * The size tells where the futex word is: in glibc's condition variables and barriers it is inside; in musl's on
 * the stack of a waiter.
 */
#define INSIDE(object) (ON_GLIBC ? sizeof(object) : 0)

#define CONDITION_USE(condition, function) \
	.name = ON_GLIBC ? #condition : NULL, .futex_class = "idle", \
	.kind = LIBC_KIND("condition variable"), .call_site = #function, .object = &(condition), \
	.size = INSIDE(condition), .wait = function

static const struct use signalled = {
	CONDITION_USE(work_condition, wait_for_signal),
	.hold = signal_each,
};
static const struct use broadcasted = {
	CONDITION_USE(work_condition, wait_for_broadcast),
	/* All of them have to lock it again. */
	.also_contended = "work_mutex",
	.hold = broadcast,
};
static const struct use timed_out = {
	CONDITION_USE(work_condition, wait_for_time),
	.hold = let_time_pass,
};
static const struct use timed_out_monotonic = {
	CONDITION_USE(tick_condition, wait_for_monotonic_time),
	.set_up = set_up_monotonic,
	.hold = let_time_pass,
};
static const struct use pool = {
	CONDITION_USE(work_condition, wait_for_job),
	.hold = trickle_jobs,
};

#define SEMAPHORE_USE(function) \
	.name = "free_slots", .futex_class = "idle", .kind = LIBC_KIND("semaphore"), \
	.call_site = #function, .object = &free_slots, .size = sizeof(free_slots), \
	.set_up = set_up_semaphore, .hold = post_each, .wait = function

static const struct use semaphore = { SEMAPHORE_USE(wait_for_semaphore) };
static const struct use timed_semaphore = { SEMAPHORE_USE(wait_for_timed_semaphore) };
static const struct use barrier = {
	.name = ON_GLIBC ? "phase_barrier" : NULL,
	.futex_class = "idle",
	.kind = LIBC_KIND("barrier"),
	.call_site = "wait_for_barrier",
	.object = &phase_barrier,
	.size = INSIDE(phase_barrier),
	.set_up = set_up_barrier,
	.hold = come_last,
	.wait = wait_for_barrier,
};
/* The word is in the record of the thread that is joined. */
static const struct use join = {
	.futex_class = "idle",
	.kind = "thread join",
	.call_site = "wait_for_join",
	/* Who joins waits also for the thread to be off musl's list. */
	.also_contended = ON_GLIBC ? NULL : "__thread_list_lock",
	.set_up = set_up_join,
	.hold = end_each,
	.before = start_short_life,
	.wait = wait_for_join,
};

/* Contention between threads that have nothing to do. */

pthread_mutex_t mix_mutex = PTHREAD_MUTEX_INITIALIZER;

FRAME int wait_for_mix_mutex(struct visit *visit)
{
	int error;

	visit_begins(visit);
	error = pthread_mutex_lock(visit->object);
	visit_ends(visit);
	return error;
}

static const struct use mix_lock = {
	.name = "mix_mutex",
	.futex_class = "lock",
	.kind = LIBC_KIND("mutex"),
	.call_site = "wait_for_mix_mutex",
	.object = &mix_mutex,
	.size = sizeof(mix_mutex),
	.has_owner = true,
	.owner_is_kept = ON_GLIBC,
	.excludes = true,
	.hold = hold_mutex,
	.wait = wait_for_mix_mutex,
	.leave = leave_mutex,
};

const struct scenario idle_scenarios[] = {
	{ "cond-signal", { &signalled } },
	{ "cond-broadcast", { &broadcasted } },
	{ "cond-timed-out", { &timed_out } },
	{ "cond-timed-out-monotonic", { &timed_out_monotonic } },
	{ "semaphore", { &semaphore } },
	{ "semaphore-timed", { &timed_semaphore } },
	{ "barrier", { &barrier } },
	{ "join", { &join } },
	{ "pool", { &pool } },
	{ "mix", { &mix_lock, &signalled, &join } },
	{ 0 },
};
