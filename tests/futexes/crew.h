/* What driver.c, proof.c and truth.c share: the threads of a scenario and what was learnt about them. */
#ifndef CREW_H
#define CREW_H

#include <pthread.h>
#include <stdatomic.h>

#include "driver.h"

/* Distinct words and calls that the truth can list. */
enum { MAX_SEEN = 64 };

/* How a blocked thread was found in the kernel. */
struct sighting {
	uint64_t word;
	int syscall;
	uint32_t op;
	uint32_t value;
	/* op and value mean something */
	bool has_op;
};

/* A thread, or a process with one thread, that does its part once each time it is told to. */
struct member {
	struct crew *crew;
	/* Of the waiters; the holder has none */
	unsigned int number;
	bool holds;
	int go;
	int done;
	_Atomic pid_t tid;
	atomic_bool finished;
	/* As long as it is not finished */
	void *_Atomic object;

	/* Of the round that ended last */
	uint64_t wait_ns;
	bool gave_up;
	bool proven;
};

struct tally {
	uint64_t contended, total_ns, min_ns, max_ns;
	uint64_t aborted, aborted_ns;
	uint64_t unproven;
};

/* In memory that processes share, so that waiters can be processes. */
struct crew {
	const struct use *use;
	void *_Atomic object;
	int held;
	int let_go;
	atomic_bool quit;
	struct tally tally;
	struct sighting seen[MAX_SEEN];
	unsigned int seen_count;
	/* More distinct ones than there is room for */
	bool seen_more;
	struct member holder;
	struct member waiters[];
};

/* proof.c */
/* Waits until the member is provably blocked in a futex call on its lock; false: it finished without. */
bool await_blocked(struct member *member, struct sighting *sighting);
/* Gives up the program when a condition takes this long. */
enum { PATIENCE_S = 60 };
uint64_t deadline_ns(void);
void poll_pause(void);

/* truth.c */
void print_ready(void);
void print_unsupported(const char *scenario, const char *why);
void print_truth(const char *scenario, struct crew *const *crews, unsigned int count,
		 uint64_t start_ns, uint64_t end_ns);

#endif
