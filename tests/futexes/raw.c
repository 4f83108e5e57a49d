/* The futex system calls themselves, as no C library of today makes them. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "futex.h"
#include "scenarios.h"

typedef _Atomic uint32_t word_t;

/* Not beside each other: no word shall look like part of a glibc object to who reads those around it. */
#define LONELY __attribute__((aligned(256)))

LONELY word_t plain_word;
LONELY word_t futex2_word;
LONELY word_t wake_op_word;
LONELY word_t waitv_words[2];
LONELY word_t requeued_word;
LONELY word_t requeue_target;
LONELY word_t pi_condition;
LONELY word_t pi_target;
LONELY word_t odd_word;

static long futex(word_t *word, int op, uint32_t value, uintptr_t timeout_or_count, word_t *other,
		  uint32_t value3)
{
	return syscall(NR_futex, word, op, value, timeout_or_count, other, value3);
}

/* Waits end early for many reasons; the caller looks at the word again. */
static void check_wait(long result, const char *what)
{
	if (result == -1 && errno != EAGAIN && errno != EINTR)
		check(errno, what);
}

static void wait_private(word_t *word, uint32_t value)
{
	check_wait(futex(word, OP_WAIT | OP_PRIVATE, value, 0, NULL, 0), "FUTEX_WAIT");
}

static void wake_private(word_t *word, uint32_t count)
{
	check_call(futex(word, OP_WAKE | OP_PRIVATE, count, 0, NULL, 0), "FUTEX_WAKE");
}

/* Mutexes of three states: 0 free, 1 locked, 2 locked and wanted. */

static inline void lock_three_states(word_t *word, void (*wait)(word_t *, uint32_t))
{
	uint32_t seen = 0;

	if (atomic_compare_exchange_strong(word, &seen, 1))
		return;
	while (atomic_exchange(word, 2) != 0)
		wait(word, 2);
}

static void hold_word(struct crew *crew, void (*unlock)(word_t *))
{
	word_t *word = crew_object(crew);

	atomic_store(word, 1);
	crew_keep(crew);
	unlock(word);
}

#define THREE_STATES(function, wait_call) \
	FRAME int function(struct visit *visit) \
	{ \
		visit_begins(visit); \
		lock_three_states(visit->object, wait_call); \
		visit_ends(visit); \
		return 0; \
	}

static void unlock_plainly(word_t *word)
{
	if (atomic_exchange(word, 0) == 2)
		wake_private(word, 1);
}

static void hold_plainly(struct crew *crew)
{
	hold_word(crew, unlock_plainly);
}

static void leave_plainly(struct visit *visit)
{
	unlock_plainly(visit->object);
}

THREE_STATES(wait_for_raw_mutex, wait_private)

/* The same with the system calls of Linux 6.7. */

static void wait_futex2(word_t *word, uint32_t value)
{
	long result = syscall(NR_futex_wait, word, (unsigned long)value, ~0U,
			      FUTEX2_WORD_32 | FUTEX2_FOR_PROCESS, NULL, 0);

	check_wait(result, "futex_wait");
}

static void unlock_futex2(word_t *word)
{
	if (atomic_exchange(word, 0) == 2)
		check_call(
		    syscall(NR_futex_wake, word, ~0U, 1, FUTEX2_WORD_32 | FUTEX2_FOR_PROCESS),
		    "futex_wake");
}

static void hold_futex2(struct crew *crew)
{
	hold_word(crew, unlock_futex2);
}

static void leave_futex2(struct visit *visit)
{
	unlock_futex2(visit->object);
}

THREE_STATES(wait_for_futex2_mutex, wait_futex2)

static const char *no_futex2(void)
{
	word_t word = 1;

	syscall(NR_futex_wait, &word, 0UL, ~0U, FUTEX2_WORD_32 | FUTEX2_FOR_PROCESS, NULL, 0);
	return errno == ENOSYS ? "this kernel has no futex_wait (Linux 6.7)" : NULL;
}

/* The same through the 32-bit entry of the kernel, for which addresses end at 4 GiB. */

static long futex_32(word_t *word, uint32_t op, uint32_t value)
{
	long result;

	/* Kernels before 4.18 clear the other registers. */
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(NR_futex_32), "b"(word), "c"(op), "d"(value), "S"(0), "D"(0)
			 : "memory", "cc", "r8", "r9", "r10", "r11");
	return (int)result;
}

static void wait_32(word_t *word, uint32_t value)
{
	long result = futex_32(word, OP_WAIT | OP_PRIVATE, value);

	if (result < 0 && result != -EAGAIN && result != -EINTR)
		check(-result, "FUTEX_WAIT by int $0x80");
}

static void unlock_32(word_t *word)
{
	long result = 0;

	if (atomic_exchange(word, 0) == 2)
		result = futex_32(word, OP_WAKE | OP_PRIVATE, 1);
	if (result < 0)
		check(-result, "FUTEX_WAKE by int $0x80");
}

static void hold_32(struct crew *crew)
{
	hold_word(crew, unlock_32);
}

static void leave_32(struct visit *visit)
{
	unlock_32(visit->object);
}

THREE_STATES(wait_for_int80_mutex, wait_32)

static word_t *low_word(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	if (page == MAP_FAILED)
		fail("no memory below 4 GiB");
	return page;
}

static void set_up_32(struct crew *crew)
{
	crew_set_object(crew, low_word());
}

/* Where the entry is missing, using it is fatal. */
static const char *no_int80(void)
{
	int status;
	pid_t child = fork();

	check_call(child, "fork");
	if (!child) {
		word_t *word = low_word();

		_exit(futex_32(word, OP_WAKE | OP_PRIVATE, 1) != 0);
	}
	check_call(waitpid(child, &status, 0), "waitpid");
	return status ? "this kernel has no 32-bit system calls" : NULL;
}

/* The same, woken by an operation that looks at a second word too. */

static void unlock_wake_op(word_t *word)
{
	static LONELY word_t second;
	/* second += 1; wake one of its waiters, which it has not, if it was -1. */
	uint32_t operation = 1 << 28 | 1 << 12 | 0xfff;

	if (atomic_exchange(word, 0) == 2)
		check_call(futex(word, OP_WAKE_OP | OP_PRIVATE, 1, 1, &second, operation),
			   "FUTEX_WAKE_OP");
}

static void hold_wake_op(struct crew *crew)
{
	hold_word(crew, unlock_wake_op);
}

static void leave_wake_op(struct visit *visit)
{
	unlock_wake_op(visit->object);
}

THREE_STATES(wait_for_wake_op_mutex, wait_private)

/* One of several words. */

FRAME int wait_for_any(struct visit *visit)
{
	struct waitv_entry entries[2];
	long result = 0;

	for (int i = 0; i < 2; i++) {
		entries[i] = (struct waitv_entry){
			.value = 7,
			.word = (uint64_t)&waitv_words[i],
			.flags = FUTEX2_WORD_32 | FUTEX2_FOR_PROCESS,
		};
	}
	visit_begins(visit);
	while (atomic_load(&waitv_words[0]) == 7) {
		result = syscall(NR_futex_waitv, entries, 2, 0, NULL, 0);
		check_wait(result, "futex_waitv");
	}
	visit_ends(visit);
	return 0;
}

static void hold_any(struct crew *crew)
{
	atomic_store(&waitv_words[0], 7);
	atomic_store(&waitv_words[1], 7);
	crew_keep(crew);
	atomic_store(&waitv_words[0], 8);
	wake_private(&waitv_words[0], INT_MAX);
}

static const char *no_waitv(void)
{
	syscall(NR_futex_waitv, NULL, 0, 0, NULL, 0);
	return errno == ENOSYS ? "this kernel has no futex_waitv (Linux 5.16)" : NULL;
}

/* Condition variables as glibc built them until 2.24: woken threads are moved to the word of the mutex. */

FRAME int wait_for_requeue(struct visit *visit)
{
	uint32_t sequence = atomic_load(&requeued_word);

	visit_begins(visit);
	while (atomic_load(&requeued_word) == sequence)
		wait_private(&requeued_word, sequence);
	visit_ends(visit);
	return 0;
}

/* Each wakes the next, as the unlock of the mutex would. */
static void leave_requeue(struct visit *visit)
{
	(void)visit;
	wake_private(&requeue_target, 1);
}

static void requeue(struct crew *crew)
{
	uint32_t sequence = atomic_fetch_add(&requeued_word, 2) + 2;

	crew_keep(crew);
	sequence = atomic_fetch_add(&requeued_word, 2) + 2;
	check_call(futex(&requeued_word, OP_CMP_REQUEUE | OP_PRIVATE, 1, INT_MAX, &requeue_target,
			 sequence),
		   "FUTEX_CMP_REQUEUE");
}

static void set_up_requeue(struct crew *crew)
{
	(void)crew;
	/* No value that means something to a library. */
	atomic_store(&requeued_word, 1000);
}

/* The same with a mutex that inherits priority. */

FRAME int wait_for_pi_requeue(struct visit *visit)
{
	uint32_t sequence = atomic_load(&pi_condition);
	long result;

	visit_begins(visit);
	do {
		result = futex(&pi_condition, OP_WAIT_REQUEUE_PI | OP_PRIVATE, sequence, 0,
			       &pi_target, 0);
	} while (result && errno == EINTR);
	visit_ends(visit);
	return result ? errno : 0;
}

static void unlock_pi_target(void)
{
	check_call(futex(&pi_target, OP_UNLOCK_PI | OP_PRIVATE, 0, 0, NULL, 0), "FUTEX_UNLOCK_PI");
}

static void leave_pi_requeue(struct visit *visit)
{
	(void)visit;
	unlock_pi_target();
}

/* The waker has the mutex meanwhile. */
static void requeue_pi(struct crew *crew)
{
	uint32_t sequence = atomic_fetch_add(&pi_condition, 2) + 2;

	crew_keep(crew);
	/* Free: no need to ask the kernel. */
	atomic_store(&pi_target, syscall(SYS_gettid));
	check_call(
	    futex(&pi_condition, OP_CMP_REQUEUE_PI | OP_PRIVATE, 1, INT_MAX, &pi_target, sequence),
	    "FUTEX_CMP_REQUEUE_PI");
	unlock_pi_target();
}

/* A wait that follows no convention: not private, an odd value, and each wake is for one thread. */

FRAME int wait_for_oddity(struct visit *visit)
{
	uint32_t before = atomic_load(&odd_word);

	visit_begins(visit);
	while (atomic_load(&odd_word) == before)
		check_wait(futex(&odd_word, OP_WAIT, before, 0, NULL, 0), "FUTEX_WAIT");
	visit_ends(visit);
	return 0;
}

static void wake_each(struct crew *crew)
{
	crew_keep(crew);
	atomic_fetch_add(&odd_word, 2);
	for (unsigned int i = 0; i < options.waiters; i++) {
		check_call(futex(&odd_word, OP_WAKE, 1, 0, NULL, 0), "FUTEX_WAKE");
		crew_await_through(crew, i + 1);
	}
}

static void set_up_oddity(struct crew *crew)
{
	(void)crew;
	atomic_store(&odd_word, 1234567);
}

#define WORD_USE(word, function) \
	.name = #word, .call_site = #function, .object = &(word), .size = sizeof(word), \
	.wait = function
#define MUTEX_LIKE(call) \
	.futex_class = "lock", .kind = "mutex (probable)", .has_owner = true, .excludes = true, \
	.hold = hold_##call, .leave = leave_##call
#define UNKNOWN .futex_class = "unknown", .kind = "unknown futex"

static const struct use plain = {
	WORD_USE(plain_word, wait_for_raw_mutex),
	MUTEX_LIKE(plainly),
};
static const struct use futex2 = {
	WORD_USE(futex2_word, wait_for_futex2_mutex),
	MUTEX_LIKE(futex2),
};
static const struct use int80 = {
	.call_site = "wait_for_int80_mutex",
	.size = sizeof(word_t),
	.set_up = set_up_32,
	.wait = wait_for_int80_mutex,
	MUTEX_LIKE(32),
};
static const struct use wake_op = {
	WORD_USE(wake_op_word, wait_for_wake_op_mutex),
	MUTEX_LIKE(wake_op),
};
static const struct use waitv = {
	WORD_USE(waitv_words, wait_for_any),
	.futex_class = "unknown",
	.kind = "futex_waitv",
	.hold = hold_any,
};
static const struct use requeued = {
	WORD_USE(requeued_word, wait_for_requeue),
	UNKNOWN,
	.set_up = set_up_requeue,
	.hold = requeue,
	.leave = leave_requeue,
};
/* Nothing but a condition variable waits so. */
static const struct use requeued_pi = {
	WORD_USE(pi_condition, wait_for_pi_requeue),
	.futex_class = "idle",
	.kind = "glibc condition variable",
	.hold = requeue_pi,
	.leave = leave_pi_requeue,
};
static const struct use oddity = {
	WORD_USE(odd_word, wait_for_oddity),
	UNKNOWN,
	.set_up = set_up_oddity,
	.hold = wake_each,
};

const struct scenario raw_scenarios[] = {
	{ "raw-mutex", { &plain } },
	{ "raw-futex2", { &futex2 }, no_futex2 },
	{ "raw-int80", { &int80 }, no_int80 },
	{ "raw-wake-op", { &wake_op } },
	{ "raw-waitv", { &waitv }, no_waitv },
	{ "raw-requeue", { &requeued } },
	{ "raw-requeue-pi", { &requeued_pi } },
	{ "raw-unknown", { &oddity } },
	{ 0 },
};
