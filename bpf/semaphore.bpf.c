// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * struct semaphore: kernel/locking/semaphore.c. These run with the semaphore's own raw spinlock held and
 * only when the count is used up. There is no owner: anybody may call up().
 */
#include "core.bpf.h"

LOCK_FN(__down, KIND_SEMAPHORE, 1, outcome_of_void)
LOCK_FN(__down_interruptible, KIND_SEMAPHORE, 1, outcome_of_int)
LOCK_FN(__down_killable, KIND_SEMAPHORE, 1, outcome_of_int)
LOCK_FN(__down_timeout, KIND_SEMAPHORE, 2, outcome_of_int)
