// Waits of threads that have nothing to do, by what the C++ library has for them.
#include <atomic>
#include <barrier>
#include <condition_variable>
#include <future>
#include <latch>
#include <mutex>
#include <semaphore>

#include "scenarios.hpp"

static std::mutex work_mutex;
std::condition_variable work_condition;
static unsigned int work_available;

std::counting_semaphore<> free_slots(0);
Renewable<std::latch> start_latch;
Renewable<std::barrier<>> phase_barrier;
std::atomic<int> generation;
static Renewable<std::promise<int>> promise;
static Renewable<std::shared_future<int>> result;

WAIT_FUNCTION wait_for_std_condition(struct visit *visit)
{
	std::unique_lock lock(work_mutex);

	visit_begins(visit);
	work_condition.wait(lock, [] { return work_available > 0; });
	visit_ends(visit);
	work_available--;
	return 0;
}

// One after the other, so that they do not meet at the mutex.
static void notify_each(struct crew *crew)
{
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++) {
		{
			std::lock_guard lock(work_mutex);
			work_available++;
		}
		work_condition.notify_one();
		crew_await_through(crew, i + 1);
	}
}

WAIT_FUNCTION wait_for_std_semaphore(struct visit *visit)
{
	visit_begins(visit);
	free_slots.acquire();
	visit_ends(visit);
	return 0;
}

static void release_each(struct crew *crew)
{
	crew_keep(crew);
	for (unsigned int i = 0; i < options.waiters; i++) {
		free_slots.release();
		crew_await_through(crew, i + 1);
	}
}

WAIT_FUNCTION wait_for_std_latch(struct visit *visit)
{
	visit_begins(visit);
	start_latch.get().wait();
	visit_ends(visit);
	return 0;
}

static void count_down(struct crew *crew)
{
	start_latch.renew(1);
	crew_keep(crew);
	start_latch.get().count_down();
}

WAIT_FUNCTION wait_for_std_barrier(struct visit *visit)
{
	visit_begins(visit);
	phase_barrier.get().arrive_and_wait();
	visit_ends(visit);
	return 0;
}

static void set_up_barrier(struct crew *)
{
	phase_barrier.renew(options.waiters + 1);
}

// The holder is the last that the barrier waits for.
static void come_last(struct crew *crew)
{
	crew_keep(crew);
	phase_barrier.get().arrive_and_wait();
}

WAIT_FUNCTION wait_for_std_atomic(struct visit *visit)
{
	int before = generation.load();

	visit_begins(visit);
	generation.wait(before);
	visit_ends(visit);
	return 0;
}

static void notify_all(struct crew *crew)
{
	crew_keep(crew);
	generation++;
	generation.notify_all();
}

WAIT_FUNCTION wait_for_std_future(struct visit *visit)
{
	visit_begins(visit);
	result.get().get();
	visit_ends(visit);
	return 0;
}

static void fulfil_promise(struct crew *crew)
{
	result.renew(promise.renew().get_future());
	crew_keep(crew);
	promise.get().set_value(1);
}

static const struct use condition = {
	.name = "work_condition",
	.futex_class = "idle",
	.kind = "glibc condition variable",
	.call_site = "wait_for_std_condition",
	.object = &work_condition,
	.size = sizeof(work_condition),
	.hold = notify_each,
	.wait = wait_for_std_condition,
};
static const struct use semaphore = {
	.name = "free_slots",
	.futex_class = "idle",
	.kind = "C++ atomic wait",
	.call_site = "wait_for_std_semaphore",
	.object = &free_slots,
	.size = sizeof(free_slots),
	.hold = release_each,
	.wait = wait_for_std_semaphore,
};
static const struct use atomic = {
	.name = "generation",
	.futex_class = "idle",
	.kind = "C++ atomic wait",
	.call_site = "wait_for_std_atomic",
	.object = &generation,
	.size = sizeof(generation),
	.hold = notify_all,
	.wait = wait_for_std_atomic,
};
// Objects that are no plain int wait on a word of the library's pool; the words of futures are on the heap.
static const struct use latch = {
	.futex_class = "idle",
	.kind = "C++ atomic wait",
	.call_site = "wait_for_std_latch",
	.hold = count_down,
	.wait = wait_for_std_latch,
};
static const struct use barrier = {
	.futex_class = "idle",
	.kind = "C++ atomic wait",
	.call_site = "wait_for_std_barrier",
	.set_up = set_up_barrier,
	.hold = come_last,
	.wait = wait_for_std_barrier,
};
static const struct use future = {
	.futex_class = "idle",
	.kind = "C++ atomic wait",
	.call_site = "wait_for_std_future",
	.hold = fulfil_promise,
	.wait = wait_for_std_future,
};

const struct scenario cpp_idle_scenarios[] = {
	{ "std-condition", { &condition } },
	{ "std-semaphore", { &semaphore } },
	{ "std-latch", { &latch } },
	{ "std-barrier", { &barrier } },
	{ "std-atomic", { &atomic } },
	{ "std-future", { &future } },
	{},
};
