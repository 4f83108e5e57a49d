/*
 * The rounds. In each one the holder takes the lock; the waiters are sent in one after another, each proven to be
 * blocked before the next starts; the chosen time passes; the holder lets go; every waiter gets through once.
 * Nobody enters again before all are through.
 *
 * Everybody is directed through eventfds, which leave no lock contention of their own, and nobody is joined: the
 * only futex waits of these programs are those in the truth.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "crew.h"

/* Standard input ended while the gate was closed. */
enum { EXIT_GATE_CLOSED = 3 };

struct options options = { .waiters = 3, .rounds = 3, .hold_ns = 50000000 };

void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", program_name, what);
	/* Threads may be stuck in locks: nothing is cleaned up. */
	_exit(1);
}

void check(int error, const char *what)
{
	if (error) {
		fprintf(stderr, "%s: %s: %s\n", program_name, what, strerror(error));
		_exit(1);
	}
}

void check_call(long result, const char *what)
{
	if (result == -1)
		check(errno, what);
}

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

struct timespec time_in(int clock, uint64_t ns)
{
	struct timespec then;

	clock_gettime(clock, &then);
	ns += then.tv_nsec;
	then.tv_sec += ns / 1000000000;
	then.tv_nsec = ns % 1000000000;
	return then;
}

void pause_ns(uint64_t ns)
{
	struct timespec left = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

int event_new(void)
{
	int event = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);

	check_call(event, "eventfd");
	return event;
}

void event_signal(int event)
{
	uint64_t one = 1;

	if (write(event, &one, sizeof(one)) != sizeof(one))
		fail("write to an eventfd");
}

void event_wait(int event)
{
	uint64_t count;
	ssize_t got;

	do {
		got = read(event, &count, sizeof(count));
	} while (got < 0 && errno == EINTR);
	if (got != sizeof(count))
		fail("read from an eventfd");
}

/* For the director: everybody else obeys it without limit. */
static void event_await(int event, const char *what)
{
	struct pollfd readable = { .fd = event, .events = POLLIN };
	int ready;

	do {
		ready = poll(&readable, 1, PATIENCE_S * 1000);
	} while (ready < 0 && errno == EINTR);
	if (ready != 1)
		fail(what);
	event_wait(event);
}

void *crew_object(const struct crew *crew)
{
	return atomic_load(&crew->object);
}

void crew_set_object(struct crew *crew, void *object)
{
	atomic_store(&crew->object, object);
}

void crew_keep(struct crew *crew)
{
	event_signal(crew->held);
	event_wait(crew->let_go);
}

void crew_await_through(const struct crew *crew, unsigned int waiters)
{
	uint64_t deadline = deadline_ns();

	for (;;) {
		unsigned int through = 0;

		for (unsigned int i = 0; i < options.waiters; i++)
			through += atomic_load(&crew->waiters[i].finished);
		if (through >= waiters)
			return;
		if (now_ns() > deadline)
			fail("gave up waiting for the waiters to get through");
		poll_pause();
	}
}

/* Two frames above every function that waits. */
static FRAME void take_turn(struct visit *visit)
{
	const struct use *use = visit->crew->use;

	check(use->wait(visit), use->call_site);
	if (options.waiter_hold_ns && use->excludes && !visit->gave_up)
		pause_ns(options.waiter_hold_ns);
	if (use->leave && !visit->gave_up)
		use->leave(visit);
}

static FRAME void take_part(struct member *me)
{
	const struct use *use = me->crew->use;
	struct visit visit = { .crew = me->crew, .waiter = me->number };

	visit.object = use->locate ? use->locate(me->crew, me->number) : crew_object(me->crew);
	atomic_store(&me->object, visit.object);
	if (use->before)
		use->before(&visit);
	take_turn(&visit);
	me->wait_ns = visit.ended_ns - visit.began_ns;
	me->gave_up = visit.gave_up;
}

static void *member_main(void *argument)
{
	struct member *me = argument;

	atomic_store(&me->tid, (pid_t)syscall(SYS_gettid));
	event_signal(me->done);
	for (;;) {
		event_wait(me->go);
		if (atomic_load(&me->crew->quit))
			return NULL;
		if (me->holds)
			me->crew->use->hold(me->crew);
		else
			take_part(me);
		atomic_store(&me->finished, true);
		event_signal(me->done);
	}
}

static void start_process(struct member *member)
{
	pid_t child = fork();

	check_call(child, "fork");
	if (child)
		return;
	/* A killed parent must not leave children behind that wait for ever. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	member_main(member);
	_exit(0);
}

static void start_member(struct member *member, struct crew *crew)
{
	pthread_t thread;

	member->crew = crew;
	member->go = event_new();
	member->done = event_new();
	if (crew->use->by_processes && !member->holds)
		start_process(member);
	else
		check(pthread_create(&thread, NULL, member_main, member), "pthread_create");
	event_await(member->done, "gave up waiting for a thread to start");
}

static struct crew *muster(const struct use *use)
{
	size_t size = sizeof(struct crew) + options.waiters * sizeof(struct member);
	struct crew *crew =
	    mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (crew == MAP_FAILED)
		fail("no memory");
	crew->use = use;
	crew->object = use->object;
	crew->held = event_new();
	crew->let_go = event_new();
	if (use->set_up)
		use->set_up(crew);
	/* Processes are forked before there are threads. */
	for (unsigned int i = 0; i < options.waiters; i++) {
		crew->waiters[i].number = i;
		start_member(&crew->waiters[i], crew);
	}
	crew->holder.holds = true;
	start_member(&crew->holder, crew);
	return crew;
}

static void go(struct member *member)
{
	atomic_store(&member->finished, false);
	event_signal(member->go);
}

static void note(struct crew *crew, const struct sighting *sighting)
{
	for (unsigned int i = 0; i < crew->seen_count; i++) {
		const struct sighting *seen = &crew->seen[i];

		if (seen->word == sighting->word && seen->syscall == sighting->syscall &&
		    seen->op == sighting->op && seen->value == sighting->value)
			return;
	}
	if (crew->seen_count < MAX_SEEN)
		crew->seen[crew->seen_count++] = *sighting;
	else
		crew->seen_more = true;
}

/* The holder holds and every waiter is blocked when this returns. */
static void block(struct crew *crew)
{
	/* Who is not in yet is not through either. */
	for (unsigned int i = 0; i < options.waiters; i++)
		atomic_store(&crew->waiters[i].finished, false);
	go(&crew->holder);
	event_await(crew->held, "gave up waiting for the holder to take the lock");
	for (unsigned int i = 0; i < options.waiters; i++) {
		struct member *waiter = &crew->waiters[i];
		struct sighting sighting = { 0 };

		go(waiter);
		waiter->proven = await_blocked(waiter, &sighting);
		if (waiter->proven)
			note(crew, &sighting);
	}
}

static void add(struct tally *tally, const struct member *waiter)
{
	if (!waiter->proven) {
		tally->unproven++;
	} else if (waiter->gave_up) {
		tally->aborted++;
		tally->aborted_ns += waiter->wait_ns;
	} else {
		if (!tally->contended || waiter->wait_ns < tally->min_ns)
			tally->min_ns = waiter->wait_ns;
		if (waiter->wait_ns > tally->max_ns)
			tally->max_ns = waiter->wait_ns;
		tally->contended++;
		tally->total_ns += waiter->wait_ns;
	}
}

static void unblock(struct crew *crew)
{
	event_signal(crew->let_go);
	event_await(crew->holder.done, "gave up waiting for the holder to finish");
	for (unsigned int i = 0; i < options.waiters; i++) {
		event_await(crew->waiters[i].done, "gave up waiting for a waiter to finish");
		add(&crew->tally, &crew->waiters[i]);
	}
}

/* Threads stay: those of musl would meet at its list of threads if all ended at once. */
static void dismiss_processes(struct crew *crew)
{
	atomic_store(&crew->quit, true);
	for (unsigned int i = 0; i < options.waiters; i++) {
		event_signal(crew->waiters[i].go);
		check_call(waitpid(crew->waiters[i].tid, NULL, 0), "waitpid");
	}
}

static void run(const struct scenario *scenario)
{
	uint64_t start_ns = now_ns();
	struct crew *crews[MAX_CREWS];
	unsigned int count = 0;

	for (; count < MAX_CREWS && scenario->uses[count]; count++)
		crews[count] = muster(scenario->uses[count]);
	for (unsigned int round = 0; round < options.rounds; round++) {
		for (unsigned int i = 0; i < count; i++)
			block(crews[i]);
		pause_ns(options.hold_ns);
		for (unsigned int i = 0; i < count; i++)
			unblock(crews[i]);
	}
	print_truth(scenario->name, crews, count, start_ns, now_ns());
	for (unsigned int i = 0; i < count; i++)
		if (scenario->uses[i]->by_processes)
			dismiss_processes(crews[i]);
}

/* Tells that we are ready and waits for a line. */
static void pass_gate(void)
{
	char byte = 0;

	print_ready();
	while (byte != '\n') {
		ssize_t got = read(STDIN_FILENO, &byte, 1);

		if (got == 0)
			_exit(EXIT_GATE_CLOSED);
		if (got < 0 && errno != EINTR)
			check_call(got, "read from standard input");
	}
}

static void usage(void)
{
	fprintf(stderr,
		"usage: %s SCENARIO [--gate] [--waiters N] [--rounds R] [--hold-ms H] "
		"[--waiter-hold-ms W]\n"
		"       %s --list\n",
		program_name, program_name);
	exit(2);
}

static const struct scenario *find(const char *name)
{
	for (const struct scenario *const *list = catalog; *list; list++)
		for (const struct scenario *scenario = *list; scenario->name; scenario++)
			if (!strcmp(scenario->name, name))
				return scenario;
	fprintf(stderr, "%s: there is no scenario %s\n", program_name, name);
	exit(2);
}

static void list_scenarios(void)
{
	for (const struct scenario *const *list = catalog; *list; list++)
		for (const struct scenario *scenario = *list; scenario->name; scenario++)
			puts(scenario->name);
}

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
	char *end;
	uint64_t value;

	if (!text)
		usage();
	value = strtoull(text, &end, 10);
	if (end == text || *end || value < least || value > most)
		usage();
	return value;
}

int main(int argc, char **argv)
{
	const struct scenario *scenario;
	const char *why;

	if (argc < 2)
		usage();
	if (!strcmp(argv[1], "--list")) {
		list_scenarios();
		return 0;
	}
	scenario = find(argv[1]);
	for (char **argument = argv + 2; *argument; argument++) {
		if (!strcmp(*argument, "--gate"))
			options.gate = true;
		else if (!strcmp(*argument, "--waiters"))
			options.waiters = number(*++argument, 1, 1000);
		else if (!strcmp(*argument, "--rounds"))
			options.rounds = number(*++argument, 1, 1000000);
		else if (!strcmp(*argument, "--hold-ms"))
			options.hold_ns = number(*++argument, 0, 3600000) * 1000000;
		else if (!strcmp(*argument, "--waiter-hold-ms"))
			options.waiter_hold_ns = number(*++argument, 0, 3600000) * 1000000;
		else
			usage();
	}
	if (options.gate)
		pass_gate();
	why = scenario->unsupported ? scenario->unsupported() : NULL;
	if (why)
		print_unsupported(scenario->name, why);
	else
		run(scenario);
	/* The threads wait for orders that nobody gives any more. */
	_exit(0);
}
