/*
 * What every scenario of the futex programs is made of, and what drives them. README.md describes the
 * protocol; driver.c the rounds.
 *
 * Plain C, for C and C++.
 */
#ifndef DRIVER_H
#define DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The functions that wait and those between them and the thread's start: each has to be on the stack. */
#define FRAME __attribute__((noinline, noclone))

/* Static musl is the other C library that these programs are built for; it has no macro of its own. */
#ifdef __GLIBC__
#define LIBC_KIND(what) "glibc " what
#define ON_GLIBC true
#else
#define LIBC_KIND(what) "musl " what
#define ON_GLIBC false
#endif

struct crew;

/* One wait of one waiter. */
struct visit {
	struct crew *crew;
	/* Number of the waiter in its crew */
	unsigned int waiter;
	/* The lock, where this waiter sees it */
	void *object;
	/* For what `before` prepares */
	uintptr_t prepared;
	/* The wait ended without what it was for */
	bool gave_up;
	uint64_t began_ns;
	uint64_t ended_ns;
};

/* A lock (or whatever is waited for) and one way of waiting for it: a row of the truth. */
struct use {
	/* The data symbol, if it has one */
	const char *name;
	/* "lock", "idle", "once", or "unknown" where the call cannot tell */
	const char *futex_class;
	/* FutexKind::name() */
	const char *kind;
	/* "read", "write" or NULL */
	const char *side;
	/* The name of `wait`, or of what it calls */
	const char *call_site;
	/* The futex word is within `size` bytes from here; size 0: anywhere */
	void *object;
	size_t size;
	/* A thread owns it while the others wait */
	bool has_owner;
	/* ... and its id can be read from the memory of the lock */
	bool owner_is_kept;
	/* The waiters own it one after another */
	bool excludes;
	/* The waiters are processes */
	bool by_processes;
	/* Another lock that the waiters may meet at afterwards; how often, nobody knows */
	const char *also_contended;

	/* Before there are threads */
	void (*set_up)(struct crew *crew);
	/* The holder's whole round: it takes the lock, calls crew_keep(), lets go */
	void (*hold)(struct crew *crew);
	/* Where a waiter sees the lock; NULL: where the crew has it */
	void *(*locate)(struct crew *crew, unsigned int waiter);
	/* The waiter's preparations, not part of the wait */
	void (*before)(struct visit *visit);
	/* The wait itself: 0 or an error number */
	int (*wait)(struct visit *visit);
	/* Lets go of what was waited for */
	void (*leave)(struct visit *visit);
};

enum { MAX_CREWS = 4 };

struct scenario {
	const char *name;
	/* What waits at the same time, each with waiters of its own */
	const struct use *uses[MAX_CREWS];
	/* Why this cannot be done here, or NULL */
	const char *(*unsupported)(void);
};

/* The scenarios of this program: lists that end with one without a name; NULL after the last. */
extern const char *const program_name;
extern const struct scenario *const catalog[];

struct options {
	unsigned int waiters;
	unsigned int rounds;
	uint64_t hold_ns;
	uint64_t waiter_hold_ns;
	bool gate;
};
extern struct options options;

/* Where the crew has its lock; the holder may say so anew in each round, before crew_keep(). */
void *crew_object(const struct crew *crew);
void crew_set_object(struct crew *crew, void *object);

/* The holder: it has what the waiters want, until this returns. */
void crew_keep(struct crew *crew);

/* Returns when so many waiters are through with their visits of this round. */
void crew_await_through(const struct crew *crew, unsigned int waiters);

/* The wait, timed: called right before and right after it. */
static inline void visit_begins(struct visit *visit);
static inline void visit_ends(struct visit *visit);

/* Ends the program unless `error` is 0. */
void check(int error, const char *what);
/* The same for system calls that return -1 and set errno. */
void check_call(long result, const char *what);
__attribute__((noreturn)) void fail(const char *what);

struct timespec;
/* `ns` from now, on that clock. */
struct timespec time_in(int clock, uint64_t ns);
uint64_t now_ns(void);
void pause_ns(uint64_t ns);

/* Descriptors that count: each `event_wait` consumes one `event_signal`. */
int event_new(void);
void event_signal(int event);
void event_wait(int event);

static inline void visit_begins(struct visit *visit)
{
	visit->began_ns = now_ns();
}

static inline void visit_ends(struct visit *visit)
{
	visit->ended_ns = now_ns();
}

#ifdef __cplusplus
}
#endif

#endif
