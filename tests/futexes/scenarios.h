/* The lists of scenarios of futexes-c, and what several of its files share. */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include <pthread.h>

#include "driver.h"

extern const struct scenario mutex_scenarios[];
extern const struct scenario place_scenarios[];
extern const struct scenario rwlock_scenarios[];
extern const struct scenario idle_scenarios[];
extern const struct scenario once_scenarios[];
extern const struct scenario raw_scenarios[];

/* For uses whose lock is a plain pthread mutex. */
void hold_mutex(struct crew *crew);
void leave_mutex(struct visit *visit);

#endif
