// Mutexes of the C++ library: with glibc, all of them are pthread mutexes and rwlocks.
#include <chrono>
#include <mutex>
#include <shared_mutex>

#include "scenarios.hpp"

std::mutex std_mutex;
std::timed_mutex std_timed_mutex;
std::recursive_mutex std_recursive_mutex;
std::shared_mutex std_shared_mutex;

WAIT_FUNCTION wait_for_std_mutex(struct visit *visit)
{
	visit_begins(visit);
	std_mutex.lock();
	visit_ends(visit);
	return 0;
}

WAIT_FUNCTION wait_for_std_timed_mutex(struct visit *visit)
{
	visit_begins(visit);
	// Longer than any round.
	bool got = std_timed_mutex.try_lock_for(std::chrono::hours(1));
	visit_ends(visit);
	visit->gave_up = !got;
	return 0;
}

WAIT_FUNCTION wait_for_std_recursive_mutex(struct visit *visit)
{
	visit_begins(visit);
	std_recursive_mutex.lock();
	visit_ends(visit);
	return 0;
}

WAIT_FUNCTION wait_for_std_shared_mutex_shared(struct visit *visit)
{
	visit_begins(visit);
	std_shared_mutex.lock_shared();
	visit_ends(visit);
	return 0;
}

WAIT_FUNCTION wait_for_std_shared_mutex_unique(struct visit *visit)
{
	visit_begins(visit);
	std_shared_mutex.lock();
	visit_ends(visit);
	return 0;
}

template <auto &mutex> static void hold(struct crew *crew)
{
	mutex.lock();
	crew_keep(crew);
	mutex.unlock();
}

template <auto &mutex> static void leave(struct visit *)
{
	mutex.unlock();
}

static void leave_shared(struct visit *)
{
	std_shared_mutex.unlock_shared();
}

// A lock that is a member of an object on the heap, taken by a guard in a member function.
class Account
{
      public:
	FRAME void deposit(unsigned long amount, struct visit *visit);

	std::mutex mutex;

      private:
	unsigned long balance = 0;
};

void Account::deposit(unsigned long amount, struct visit *visit)
{
	visit_begins(visit);
	std::lock_guard guard(mutex);
	visit_ends(visit);
	balance += amount;
}

static Account *account;

WAIT_FUNCTION pay_in(struct visit *visit)
{
	account->deposit(1, visit);
	return 0;
}

static void open_account(struct crew *crew)
{
	account = new Account;
	crew_set_object(crew, &account->mutex);
}

static void hold_account(struct crew *crew)
{
	std::lock_guard guard(account->mutex);
	crew_keep(crew);
}

#define LOCK_USE(mutex, function) \
	.name = #mutex, .futex_class = "lock", .kind = "glibc mutex", .call_site = #function, \
	.object = &(mutex), .size = sizeof(mutex), .has_owner = true, .owner_is_kept = true, \
	.excludes = true, .hold = hold<mutex>, .wait = function, .leave = leave<mutex>

static const struct use plain = { LOCK_USE(std_mutex, wait_for_std_mutex) };
static const struct use timed = { LOCK_USE(std_timed_mutex, wait_for_std_timed_mutex) };
static const struct use recursive = { LOCK_USE(std_recursive_mutex, wait_for_std_recursive_mutex) };

#define SHARED_USE(which, function) \
	.name = "std_shared_mutex", .futex_class = "lock", .kind = "glibc rwlock", .side = which, \
	.call_site = #function, .object = &std_shared_mutex, .size = sizeof(std_shared_mutex), \
	.has_owner = true, .owner_is_kept = true

static const struct use shared = {
	SHARED_USE("read", wait_for_std_shared_mutex_shared),
	.hold = hold<std_shared_mutex>,
	.wait = wait_for_std_shared_mutex_shared,
	.leave = leave_shared,
};
static const struct use unique = {
	SHARED_USE("write", wait_for_std_shared_mutex_unique),
	.excludes = true,
	.hold = hold<std_shared_mutex>,
	.wait = wait_for_std_shared_mutex_unique,
	.leave = leave<std_shared_mutex>,
};
static const struct use guarded = {
	.futex_class = "lock",
	.kind = "glibc mutex",
	.call_site = "Account::deposit",
	.size = sizeof(std::mutex),
	.has_owner = true,
	.owner_is_kept = true,
	.set_up = open_account,
	.hold = hold_account,
	.wait = pay_in,
};

const struct scenario cpp_lock_scenarios[] = {
	{ "std-mutex", { &plain } },
	{ "std-timed-mutex", { &timed } },
	{ "std-recursive-mutex", { &recursive } },
	{ "std-shared-mutex-shared", { &shared } },
	{ "std-shared-mutex-unique", { &unique } },
	{ "account", { &guarded } },
	{},
};
