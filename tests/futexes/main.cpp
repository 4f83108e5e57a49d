// futexes-cpp: what the C++ standard library makes of futexes.
#include "scenarios.hpp"

extern "C" {
const char *const program_name = "futexes-cpp";

const struct scenario *const catalog[] = {
	cpp_lock_scenarios,
	cpp_idle_scenarios,
	cpp_once_scenarios,
	nullptr,
};
}
