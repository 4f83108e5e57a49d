/* The futex system calls as this repository needs them: musl-gcc sees no kernel headers, Debian 12's are old. */
#ifndef FUTEX_H
#define FUTEX_H

#include <stdint.h>

/* x86-64 */
enum {
	NR_futex = 202,
	/* Of the 32-bit entry; for the 64-bit one it is mq_open, which never blocks here */
	NR_futex_32 = 240,
	NR_futex_waitv = 449,
	NR_futex_wake = 454,
	NR_futex_wait = 455,
};

enum {
	OP_WAIT = 0,
	OP_WAKE = 1,
	OP_CMP_REQUEUE = 4,
	OP_WAKE_OP = 5,
	OP_UNLOCK_PI = 7,
	OP_WAIT_REQUEUE_PI = 11,
	OP_CMP_REQUEUE_PI = 12,
	OP_PRIVATE = 128,
};

/* Flags of the system calls of Linux 5.16 and later */
enum { FUTEX2_WORD_32 = 2, FUTEX2_FOR_PROCESS = 128 };

/* What futex_waitv(2) takes an array of. */
struct waitv_entry {
	uint64_t value;
	uint64_t word;
	uint32_t flags;
	uint32_t reserved;
};

#endif
