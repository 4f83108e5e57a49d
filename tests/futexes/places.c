/* Plain pthread mutexes elsewhere than in a global: what a lock is called depends on where it lives. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "scenarios.h"

static __thread pthread_mutex_t thread_local_mutex = PTHREAD_MUTEX_INITIALIZER;

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

WAIT_FUNCTION(wait_for_heap_mutex)
WAIT_FUNCTION(wait_for_stack_mutex)
WAIT_FUNCTION(wait_for_thread_local_mutex)
WAIT_FUNCTION(wait_for_shared_mutex)
WAIT_FUNCTION(wait_for_mapped_mutex)

/* One mutex for each waiter, all waited for from one call site. */
struct account {
	/* Not alone in its allocation, as in real life. */
	long balance[5];
	pthread_mutex_t mutex;
};
static struct account **accounts;

static void set_up_heap(struct crew *crew)
{
	(void)crew;
	accounts = calloc(options.waiters, sizeof(*accounts));
	for (unsigned int i = 0; i < options.waiters; i++) {
		accounts[i] = calloc(1, sizeof(**accounts));
		check(pthread_mutex_init(&accounts[i]->mutex, NULL), "pthread_mutex_init");
	}
}

static void *heap_mutex_of(struct crew *crew, unsigned int waiter)
{
	(void)crew;
	return &accounts[waiter]->mutex;
}

static void hold_heap(struct crew *crew)
{
	for (unsigned int i = 0; i < options.waiters; i++)
		check(pthread_mutex_lock(&accounts[i]->mutex), "pthread_mutex_lock");
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++)
		check(pthread_mutex_unlock(&accounts[i]->mutex), "pthread_mutex_unlock");
}

static void hold_on_stack(struct crew *crew)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

	crew_set_object(crew, &mutex);
	hold_mutex(crew);
	/* The mutex goes away with this frame. */
	crew_await_through(crew, options.waiters);
}

static void hold_thread_local(struct crew *crew)
{
	crew_set_object(crew, &thread_local_mutex);
	hold_mutex(crew);
}

static void init_shared(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attributes;

	check(pthread_mutexattr_init(&attributes), "pthread_mutexattr_init");
	check(pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED),
	      "pthread_mutexattr_setpshared");
	check(pthread_mutex_init(mutex, &attributes), "pthread_mutex_init");
}

static void *map(int file, off_t offset, size_t size)
{
	int flags = MAP_SHARED | (file < 0 ? MAP_ANONYMOUS : 0);
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, file, offset);

	if (memory == MAP_FAILED)
		fail("mmap of shared memory");
	return memory;
}

static void set_up_shared(struct crew *crew)
{
	crew_set_object(crew, map(-1, 0, sizeof(pthread_mutex_t)));
	init_shared(crew_object(crew));
}

/* The mutex is in the second page of the file, and not at its start. */
enum { PAGE = 4096, MUTEX_AT = 192 };
static int mapped_file = -1;

static void set_up_mapped(struct crew *crew)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/shm/lockprof-futexes-%d", getpid());
	mapped_file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	check_call(mapped_file, path);
	/* Whoever inherits the descriptor has the file; nothing is left behind. */
	check_call(unlink(path), path);
	check_call(ftruncate(mapped_file, 2 * PAGE), path);
	crew_set_object(crew, (char *)map(mapped_file, PAGE, PAGE) + MUTEX_AT);
	init_shared(crew_object(crew));
}

/* Each process maps it for itself, somewhere else than the others. */
static void *mapped_mutex_of(struct crew *crew, unsigned int waiter)
{
	static void *mutex;

	(void)crew;
	if (!mutex) {
		/* As many pages further down as there were processes before. */
		map(-1, 0, (waiter + 1) * PAGE);
		mutex = (char *)map(mapped_file, PAGE, PAGE) + MUTEX_AT;
	}
	return mutex;
}

#define PLACE_USE(function) \
	.futex_class = "lock", .kind = LIBC_KIND("mutex"), .call_site = #function, \
	.size = sizeof(pthread_mutex_t), .has_owner = true, .owner_is_kept = ON_GLIBC, \
	.wait = function, .leave = leave_mutex

static const struct use heap = {
	PLACE_USE(wait_for_heap_mutex),
	.set_up = set_up_heap,
	.locate = heap_mutex_of,
	.hold = hold_heap,
};
static const struct use stack = {
	PLACE_USE(wait_for_stack_mutex),
	.excludes = true,
	.hold = hold_on_stack,
};
static const struct use thread_local_storage = {
	PLACE_USE(wait_for_thread_local_mutex),
	.excludes = true,
	.hold = hold_thread_local,
};
static const struct use shared = {
	PLACE_USE(wait_for_shared_mutex), .excludes = true,   .by_processes = true,
	.set_up = set_up_shared,	  .hold = hold_mutex,
};
static const struct use mapped = {
	PLACE_USE(wait_for_mapped_mutex), .excludes = true,	     .by_processes = true,
	.set_up = set_up_mapped,	  .locate = mapped_mutex_of, .hold = hold_mutex,
};

const struct scenario place_scenarios[] = {
	{ "mutex-heap", { &heap } },
	{ "mutex-stack", { &stack } },
	{ "mutex-thread-local", { &thread_local_storage } },
	{ "mutex-shared", { &shared } },
	{ "mutex-mapped", { &mapped } },
	{ 0 },
};
