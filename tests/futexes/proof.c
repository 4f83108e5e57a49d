/*
 * Proof that a thread is blocked in the futex call it is meant to wait in.
 *
 * /proc/TID/syscall answers with numbers only when the thread is off the CPU; the futex word among them and the
 * state in `stat`, the same at two looks in a row, are the proof.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "crew.h"
#include "futex.h"

uint64_t deadline_ns(void)
{
	return now_ns() + PATIENCE_S * 1000000000ULL;
}

void poll_pause(void)
{
	pause_ns(50000);
}

/* A file about a thread as text; "" when there is none. Not with stdio: its locks may be what is waited for. */
static void read_about(pid_t tid, const char *file, char *text, size_t size)
{
	char path[64];
	ssize_t got = 0;
	int fd;

	/* Not /proc/self/task: a waiter may be a process. */
	snprintf(path, sizeof(path), "/proc/%d/%s", tid, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		got = read(fd, text, size - 1);
		close(fd);
	}
	text[got > 0 ? got : 0] = '\0';
}

static bool sleeps(pid_t tid)
{
	char stat[512];
	const char *end;

	read_about(tid, "stat", stat, sizeof(stat));
	/* The state follows the command name, which may contain anything. */
	end = strrchr(stat, ')');
	return end && end[1] == ' ' && end[2] == 'S';
}

/* The word that a call of this number waits for, by its first argument. */
static bool futex_word(long number, uint64_t first, struct sighting *sighting)
{
	switch (number) {
	case NR_futex:
	case NR_futex_32:
		sighting->has_op = true;
		sighting->word = first;
		return true;
	case NR_futex_wait:
		sighting->word = first;
		return true;
	case NR_futex_waitv: {
		/* In our own memory: only threads wait so. */
		const struct waitv_entry *entry = (const void *)first;

		sighting->word = entry->word;
		return true;
	}
	default:
		return false;
	}
}

/* Looks once. */
static bool look(const struct member *member, struct sighting *sighting)
{
	uint64_t object = (uint64_t)atomic_load(&member->object);
	size_t size = member->crew->use->size;
	char text[256];
	long number;
	unsigned long long first, second, third;

	*sighting = (struct sighting){ 0 };
	read_about(member->tid, "syscall", text, sizeof(text));
	/* "running" is no number. */
	if (sscanf(text, "%ld %llx %llx %llx", &number, &first, &second, &third) != 4)
		return false;
	if (!futex_word(number, first, sighting) || !sleeps(member->tid))
		return false;
	sighting->syscall = number;
	if (sighting->has_op) {
		sighting->op = second;
		sighting->value = third;
	}
	return !size || (sighting->word >= object && sighting->word < object + size);
}

bool await_blocked(struct member *member, struct sighting *sighting)
{
	uint64_t deadline = deadline_ns();
	struct sighting before = { 0 };
	bool seen_before = false;

	while (now_ns() < deadline) {
		bool seen = look(member, sighting);

		if (seen && seen_before && sighting->word == before.word)
			return true;
		if (atomic_load(&member->finished))
			return false;
		seen_before = seen;
		before = *sighting;
		poll_pause();
	}
	fail("a waiter did not block in the lock");
}
