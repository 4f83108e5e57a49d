// The lists of scenarios of futexes-cpp, and what its files share.
#ifndef SCENARIOS_HPP
#define SCENARIOS_HPP

#include <new>
#include <utility>

#include "driver.h"

extern const struct scenario cpp_lock_scenarios[];
extern const struct scenario cpp_idle_scenarios[];
extern const struct scenario cpp_once_scenarios[];

// The functions that wait have C names, which tools show without arguments.
#define WAIT_FUNCTION extern "C" FRAME int

// An object that is built anew for each round, under a name that stays: most of these are for one use. Plain
// memory, so that its address is known when nothing has run yet.
template <typename T> struct Renewable {
	alignas(T) unsigned char bytes[sizeof(T)];

	T &get()
	{
		return *std::launder(reinterpret_cast<T *>(bytes));
	}
	template <typename... Arguments> T &renew(Arguments &&...arguments)
	{
		return *new (bytes) T(std::forward<Arguments>(arguments)...);
	}
};

#endif
