// std::call_once: initialization that another thread is at.
#include <mutex>

#include "scenarios.hpp"

Renewable<std::once_flag> table_flag;

static void initialize_slowly(struct crew *crew)
{
	crew_keep(crew);
}

WAIT_FUNCTION wait_for_std_once(struct visit *visit)
{
	visit_begins(visit);
	std::call_once(table_flag.get(), initialize_slowly, visit->crew);
	visit_ends(visit);
	return 0;
}

static void hold_once(struct crew *crew)
{
	// Nobody is inside.
	table_flag.renew();
	std::call_once(table_flag.get(), initialize_slowly, crew);
}

static const struct use once = {
	.name = "table_flag",
	.futex_class = "once",
	.kind = "glibc once",
	.call_site = "wait_for_std_once",
	.object = &table_flag,
	.size = sizeof(table_flag),
	.has_owner = true,
	.hold = hold_once,
	.wait = wait_for_std_once,
};

const struct scenario cpp_once_scenarios[] = {
	{ "std-once", { &once } },
	{},
};
