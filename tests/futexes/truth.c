/* What happened, as JSON lines on standard output. What is unknown is null, never 0. */
#define _GNU_SOURCE
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crew.h"

/* Whole lines only, and no text here needs escaping. */
static void print_text(const char *field, const char *text)
{
	if (text)
		printf(",\"%s\":\"%s\"", field, text);
	else
		printf(",\"%s\":null", field);
}

static void print_number(const char *field, bool known, uint64_t number)
{
	if (known)
		printf(",\"%s\":%" PRIu64, field, number);
	else
		printf(",\"%s\":null", field);
}

static void print_address(const char *field, bool known, uint64_t address)
{
	if (known)
		printf(",\"%s\":\"0x%" PRIx64 "\"", field, address);
	else
		printf(",\"%s\":null", field);
}

void print_ready(void)
{
	/* The only thread so far. */
	printf("{\"event\":\"ready\",\"pid\":%d,\"tids\":[%d]}\n", getpid(), getpid());
	fflush(stdout);
}

void print_unsupported(const char *scenario, const char *why)
{
	printf("{\"event\":\"truth\",\"scenario\":\"%s\",\"pid\":%d,\"unsupported\":\"%s\","
	       "\"locks\":[]}\n",
	       scenario, getpid(), why);
	fflush(stdout);
}

/* Every word that somebody was seen to wait for, once. */
static void print_words(const struct crew *crew)
{
	printf(",\"addrs\":[");
	for (unsigned int i = 0; i < crew->seen_count; i++) {
		bool again = false;

		for (unsigned int j = 0; j < i; j++)
			again |= crew->seen[j].word == crew->seen[i].word;
		if (!again)
			printf("%s\"0x%" PRIx64 "\"", i ? "," : "", crew->seen[i].word);
	}
	printf("]");
	printf(",\"more_addrs\":%s", crew->seen_more ? "true" : "false");
}

static bool same_call(const struct sighting *one, const struct sighting *other)
{
	return one->syscall == other->syscall && one->op == other->op && one->value == other->value;
}

/* Every call that somebody was seen in, once. */
static void print_calls(const struct crew *crew)
{
	printf(",\"calls\":[");
	for (unsigned int i = 0; i < crew->seen_count; i++) {
		const struct sighting *seen = &crew->seen[i];
		bool again = false;

		for (unsigned int j = 0; j < i; j++)
			again |= same_call(&crew->seen[j], seen);
		if (again)
			continue;
		printf("%s{\"syscall\":%d", i ? "," : "", seen->syscall);
		print_address("op", seen->has_op, seen->op);
		print_address("value", seen->has_op, seen->value);
		printf("}");
	}
	printf("]");
}

static void print_row(const struct crew *crew)
{
	const struct use *use = crew->use;
	const struct tally *tally = &crew->tally;
	/* The last of the queue holds it while nobody waits. */
	bool chain = use->excludes && options.waiter_hold_ns && !tally->aborted;
	/* Where each waiter has an object of its own, one cannot stand for all. */
	uint64_t object = (uint64_t)crew_object(crew);

	printf("{\"name\":");
	if (use->name)
		printf("\"%s\"", use->name);
	else
		printf("null");
	print_address("addr", crew->seen_count, crew->seen[0].word);
	print_address("object", object && !use->locate, object);
	print_words(crew);
	print_text("class", use->futex_class);
	print_text("kind", use->kind);
	print_text("side", use->side);
	print_calls(crew);
	print_number("contended", true, tally->contended);
	print_number("wait_total_ns", true, tally->total_ns);
	print_number("wait_min_ns", tally->contended, tally->min_ns);
	print_number("wait_max_ns", tally->contended, tally->max_ns);
	print_number("aborted", true, tally->aborted);
	print_number("aborted_ns", true, tally->aborted_ns);
	print_number("unproven", true, tally->unproven);
	print_text("call_site", use->call_site);
	print_number("holder_tid", use->has_owner, crew->holder.tid);
	printf(",\"owner_is_kept\":%s", use->owner_is_kept ? "true" : "false");
	print_number("holds", chain, (uint64_t)options.rounds * (options.waiters - 1));
	print_number("hold_each_ns", chain, options.waiter_hold_ns);
	print_text("also_contended", use->also_contended);
	printf(",\"processes\":%s", use->by_processes ? "true" : "false");
	printf(",\"tids\":[");
	for (unsigned int i = 0; i < options.waiters; i++)
		printf("%s%d", i ? "," : "", crew->waiters[i].tid);
	printf("]}");
}

void print_truth(const char *scenario, struct crew *const *crews, unsigned int count,
		 uint64_t start_ns, uint64_t end_ns)
{
	printf("{\"event\":\"truth\",\"scenario\":\"%s\",\"pid\":%d", scenario, getpid());
	print_text("unsupported", NULL);
	print_number("rounds", true, options.rounds);
	print_number("waiters", true, options.waiters);
	print_number("hold_ns", true, options.hold_ns);
	print_number("start_ns", true, start_ns);
	print_number("end_ns", true, end_ns);
	printf(",\"locks\":[");
	for (unsigned int i = 0; i < count; i++) {
		if (i)
			printf(",");
		print_row(crews[i]);
	}
	printf("]}\n");
	fflush(stdout);
}
