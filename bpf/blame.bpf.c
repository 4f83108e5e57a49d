// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Releases, and what is charged to whom: queue.bpf.h says how. Global functions: see stacks.bpf.c. */
#include "futex.bpf.h"
#include "queue.bpf.h"

static __always_inline struct blame_stats *blame_of(struct counters *c, const struct blame_key *key,
						    __u32 tgid, const char comm[16])
{
	struct blame_stats *blame = bpf_map_lookup_elem(&blames, key);

	if (blame)
		return blame;
	/* From constants, and named afterwards: the stack of four functions that call each other is 512 bytes. */
	bpf_map_update_elem(&blames, key, &zero_blame, BPF_NOEXIST);
	blame = bpf_map_lookup_elem(&blames, key);
	if (!blame) {
		c->lost[LOSS_BLAMES_MAP_FULL]++;
		return 0;
	}
	blame->tgid = tgid;
	__builtin_memcpy(blame->comm, comm, sizeof(blame->comm));
	return blame;
}

/* The current thread is about to release a lock; 1: somebody waits for it, and the stack is wanted. */
__noinline int queue_release(__u64 addr, __u32 kind)
{
	struct lock_key key = queue_key(addr, kind);
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);
	__u32 tid = bpf_get_current_pid_tgid();
	struct counters *c = this_cpu_counters();
	struct queue_sum sum;
	struct watch *watch;
	struct queue *q;
	__u64 now, ns;
	bool late;

	if (!c || !stats)
		return 0;
	q = &stats->queue;
	now = bpf_ktime_get_ns();
	sum = queue_sum(q, now);
	if (!sum.waiters && !sum.ns && !q->pending_ns) {
		q->state = QUEUE_FREE;
		q->holder.tid = tid;
		q->holder.evidence = HOLDER_RELEASED;
		return 0;
	}
	watch = watch_of_current(c);
	/* A waiter was faster than we here: the lock is its already. Of readers nobody is the holder. */
	late = q->state == QUEUE_HELD && q->holder.evidence == HOLDER_ACQUIRED &&
	       q->holder.tid != tid && !q->holder.reads;
	if (late) {
		ns = take_all(&q->pending_ns);
		if (!watch) {
			add_ns(&q->no_room_ns, ns);
			return 0;
		}
		watch->charge_ns = ns;
		watch->charge_wanted_ns = q->pending_wanted_ns;
		watch->charge_chained_ns = 0;
		watch->charge_ends_hold = 0;
		watch->charge_known_states = 0;
		return ns > 0;
	}
	count_wall(q, sum.waiters, now);
	queue_take(q, sum.ns);
	/* Somebody was thought to have it, in between. */
	if (q->pending_ns && q->pending.tid == tid) {
		sum.ns += take_all(&q->pending_ns);
		q->hold_wanted_ns += q->pending_wanted_ns;
	}
	if (q->pending_ns)
		charge_pending(addr, kind);
	if (!watch) {
		add_ns(&q->no_room_ns, sum.ns);
	} else {
		watch->charge_ns = sum.ns;
		watch->charge_wanted_ns = q->hold_wanted_ns;
		watch->charge_chained_ns = q->chained_ns;
		watch->charge_hold_ns = q->state == QUEUE_HELD ? now - q->held_since_ns : 0;
		watch->charge_ends_hold = 1;
		watch->charge_known_states = same_key(&watch->held, &key);
		if (watch->charge_known_states) {
			enter_state(watch, WATCH_RUNNING, now);
			for (int i = 0; i < WATCH_STATES; i++)
				watch->charge_state_ns[i] = watch->state_ns[i];
			watch->held.addr = 0;
		}
	}
	q->hold_wanted_ns = 0;
	q->chained_ns = 0;
	q->state = QUEUE_FREE;
	q->holder.tid = tid;
	q->holder.evidence = HOLDER_RELEASED;
	q->holder.reads = 0;
	return watch ? 1 : 0;
}

static __always_inline bool same_party(const struct party *a, const struct party *b)
{
	const __u64 *x = (const void *)a->comm, *y = (const void *)b->comm;

	return a->kernel_stack == b->kernel_stack && a->user_stack == b->user_stack &&
	       a->tgid == b->tgid && x[0] == y[0] && x[1] == y[1];
}

/* The hold of this party is over. Nobody else is here: the lock is its until it lets go of it. */
static __always_inline void hold_of_class(struct queue *q, const struct party *party, __u64 ns)
{
	__u32 found = HOLDER_CLASSES;

	if (!ns)
		ns = 1;
	for (__u32 i = 0; i < HOLDER_CLASSES; i++) {
		struct holder_class *class = &q->classes[i];

		if (class->held_ns && !same_party(&class->party, party))
			continue;
		if (!class->held_ns)
			__builtin_memcpy(&class->party, party, sizeof(*party));
		class->held_ns += ns;
		found = i;
		break;
	}
	q->class_of_hold[q->holds & (HOLD_RING - 1)] = found;
	q->holds++;
}

/* … and this is where it does. */
__noinline int queue_charge(__u64 addr, __u32 kind, __u64 kernel_stack, __u64 user_stack)
{
	struct lock_key key = queue_key(addr, kind);
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);
	__u64 id = bpf_get_current_pid_tgid();
	struct counters *c = this_cpu_counters();
	struct party party = {};
	struct blame_stats *blame;
	struct blame_key who;
	struct watch *watch;
	__u32 tid = id;

	watch = bpf_map_lookup_elem(&watched, &tid);
	if (!c || !stats || !watch)
		return 0;
	party.kernel_stack = kernel_stack;
	party.user_stack = user_stack;
	party.tgid = id >> 32;
	bpf_get_current_comm(party.comm, sizeof(party.comm));
	if (watch->charge_ends_hold)
		hold_of_class(&stats->queue, &party, watch->charge_hold_ns);

	who.lock = key;
	who.kernel_stack = kernel_stack;
	who.user_stack = user_stack;
	who.tid = tid;
	who.evidence = HOLDER_RELEASED;
	blame = blame_of(c, &who, party.tgid, party.comm);
	if (!blame) {
		add_ns(&stats->queue.no_room_ns, watch->charge_ns);
		return 0;
	}
	add_ns(&blame->blamed_ns, watch->charge_ns);
	blame->chained_ns += watch->charge_chained_ns;
	blame->wanted_ns += watch->charge_wanted_ns;
	blame->holds++;
	if (watch->charge_known_states) {
		for (int i = 0; i < WATCH_STATES; i++)
			blame->state_ns[i] += watch->charge_state_ns[i];
	}
	return 0;
}

/* To the holder whose release was not seen. */
__noinline int charge_pending(__u64 addr, __u32 kind)
{
	struct lock_key key = queue_key(addr, kind);
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);
	struct counters *c = this_cpu_counters();
	struct blame_stats *blame;
	struct blame_key who;
	struct queue *q;
	__u64 ns;

	if (!c || !stats)
		return 0;
	q = &stats->queue;
	ns = take_all(&q->pending_ns);
	if (!ns)
		return 0;
	if (q->pending.evidence != HOLDER_ACQUIRED && q->pending.evidence != HOLDER_OWNER_WORD) {
		__sync_fetch_and_add(&q->not_seen_ns, ns);
		return 0;
	}
	who.lock = key;
	who.kernel_stack = q->pending.kernel_stack;
	who.user_stack = q->pending.user_stack;
	who.tid = q->pending.tid;
	who.evidence = q->pending.evidence;
	blame = blame_of(c, &who, q->pending.tgid, q->pending.comm);
	if (!blame) {
		__sync_fetch_and_add(&q->no_room_ns, ns);
		return 0;
	}
	__sync_fetch_and_add(&blame->blamed_ns, ns);
	__sync_fetch_and_add(&blame->wanted_ns, q->pending_wanted_ns);
	__sync_fetch_and_add(&blame->holds, 1);
	return 0;
}

/*
 * The lock was released where nothing was looked up by its address, in another process or by parking_lot; but the
 * current thread knows who woke it, and when.
 */
__noinline int queue_charge_waker(__u64 addr, __u32 kind, __u64 now)
{
	struct lock_key key = queue_key(addr, kind);
	struct lock_stats *stats = bpf_map_lookup_elem(&locks, &key);
	__u32 tid = bpf_get_current_pid_tgid();
	struct futex_wait *wait = bpf_map_lookup_elem(&futex_waits, &tid);
	struct counters *c = this_cpu_counters();
	struct blame_stats *blame;
	struct blame_key who;
	struct queue_sum sum;
	struct queue *q;
	__u64 since;

	if (!c || !stats || !wait || !wait->waker.tid)
		return 0;
	q = &stats->queue;
	if (q->state != QUEUE_HELD)
		return 0;
	sum = queue_sum(q, now);
	/* What accrued since the wake is handoff, and stays for whoever comes next. */
	since = (now - wait->waker.woken_ns) * sum.waiters;
	if (since >= sum.ns)
		return 0;
	count_wall(q, sum.waiters, now);
	q->state = QUEUE_FREE;
	q->holder.tid = wait->waker.tid;
	q->holder.evidence = HOLDER_RELEASED;
	who.lock = key;
	who.kernel_stack = STACK_NOT_TAKEN;
	who.user_stack = wait->waker.stack;
	who.tid = wait->waker.tid;
	who.evidence = who.user_stack == STACK_NOT_TAKEN ? HOLDER_OWNER_WORD : HOLDER_RELEASED;
	queue_take(q, sum.ns - since);
	blame = blame_of(c, &who, wait->waker.tgid, wait->waker.comm);
	if (!blame) {
		__sync_fetch_and_add(&q->no_room_ns, sum.ns - since);
		return 0;
	}
	__sync_fetch_and_add(&blame->blamed_ns, sum.ns - since);
	__sync_fetch_and_add(&blame->wanted_ns, q->hold_wanted_ns);
	__sync_fetch_and_add(&blame->holds, 1);
	q->hold_wanted_ns = 0;
	return 0;
}

/* What every class held the lock since the current thread came, is what this thread waited for it. */
__noinline int count_pairs(__u64 addr, __u32 kind, __u32 place)
{
	__u32 tid = bpf_get_current_pid_tgid(), spot = place & 1, first;
	struct watch *watch = bpf_map_lookup_elem(&watched, &tid);
	struct counters *c = this_cpu_counters();
	struct pair_key pair = {};
	struct lock_stats *stats;
	const struct queue *q;

	pair.lock = queue_key(addr, kind);
	stats = bpf_map_lookup_elem(&locks, &pair.lock);
	if (!watch || !stats || !c)
		return 0;
	q = &stats->queue;
	/* The hold that went on when it came began before that. */
	first = HOLDER_CLASSES;
	if (q->holds - watch->position[spot].hold - 1 < HOLD_RING)
		first = q->class_of_hold[watch->position[spot].hold & (HOLD_RING - 1)];
	pair.waiter.kernel_stack = watch->kernel_stack[spot];
	pair.waiter.user_stack = watch->user_stack[spot];
	pair.waiter.tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(pair.waiter.comm, sizeof(pair.waiter.comm));
	for (__u32 i = 0; i < HOLDER_CLASSES; i++) {
		__u64 ns = q->classes[i].held_ns - watch->position[spot].held_ns[i], *sum, zero = 0;

		if (i == first)
			ns -= watch->position[spot].into_hold_ns;
		if ((__s64)ns <= 0)
			continue;
		__builtin_memcpy(&pair.holder, &q->classes[i].party, sizeof(pair.holder));
		sum = bpf_map_lookup_elem(&pairs, &pair);
		if (!sum) {
			bpf_map_update_elem(&pairs, &pair, &zero, BPF_NOEXIST);
			sum = bpf_map_lookup_elem(&pairs, &pair);
		}
		if (sum)
			__sync_fetch_and_add(sum, ns);
		else
			c->lost[LOSS_PAIRS_MAP_FULL]++;
	}
	return 0;
}

/* What accrued at the lock that the current thread holds, while it waited for this one, is this wait's fault. */
__noinline int count_chain(__u64 addr, __u32 kind, __u64 now)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct watch *watch = bpf_map_lookup_elem(&watched, &tid);
	struct counters *c = this_cpu_counters();
	struct chain_stats *chain;
	struct lock_stats *stats;
	struct chain_key key;
	__u64 ns;

	if (!c || !watch)
		return 0;
	key.lock = watch->held;
	key.other = queue_key(addr, kind);
	key.tid = tid;
	key.unused = 0;
	if (!key.lock.addr || same_key(&key.lock, &key.other))
		return 0;
	stats = bpf_map_lookup_elem(&locks, &key.lock);
	if (!stats)
		return 0;
	ns = queue_sum(&stats->queue, now).ns;
	if (ns <= watch->chain_mark_ns)
		return 0;
	ns -= watch->chain_mark_ns;
	stats->queue.chained_ns += ns;
	chain = bpf_map_lookup_elem(&chains, &key);
	if (!chain) {
		bpf_map_update_elem(&chains, &key, &zero_chain, BPF_NOEXIST);
		chain = bpf_map_lookup_elem(&chains, &key);
	}
	if (!chain) {
		c->lost[LOSS_PAIRS_MAP_FULL]++;
		return 0;
	}
	chain->tgid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(chain->comm, sizeof(chain->comm));
	__sync_fetch_and_add(&chain->waited_ns, ns);
	return 0;
}
