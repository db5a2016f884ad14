// SPDX-License-Identifier: GPL-2.0
/*
 * A monitor in one page: find the memory that is not used, move it to a file,
 * bring it back when it is touched. Anonymous memory and UFFDIO_MOVE, so that
 * taking a page away is atomic and no copy can be stale.
 *
 * The guest is a thread that uses a quarter of the memory, then all of it. It
 * checks what it reads; so does the monitor, in the end.
 *
 * One lock: `where` and the file belong to whoever holds `lock`. The thread that
 * answers faults never touches guest memory, or it could wait for itself.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <poll.h>

#define PAGE 4096ul
#define PAGES 1024ul

static char *ram, *staging;
static int uffd, file, pagemap;
static bool out[PAGES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile bool finished;
static unsigned long evicted, fetched;

/* lock held: put the page back, where it arrives armed, and let it be used */
static void fetch(unsigned long i)
{
	if (out[i]) {
		/* Filling the staging page is an ordinary access: not tracked */
		CHECK(pread(file, staging + i * PAGE, PAGE, i * PAGE) == (ssize_t)PAGE, "%m");
		while (uffd_move(uffd, ram + i * PAGE, staging + i * PAGE, PAGE) == -EAGAIN)
			;
		out[i] = false;
		fetched++;
	}
	/* Also for a duplicate message of a page that is back already */
	rwprotect(uffd, ram + i * PAGE, PAGE, 0);
	wake(uffd, ram + i * PAGE, PAGE);
}

static void *serve_faults(void *arg)
{
	struct pollfd p = { .fd = uffd, .events = POLLIN };
	struct u_msg msg;

	while (!finished) {
		poll(&p, 1, 50);
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		pthread_mutex_lock(&lock);
		fetch((msg.pf.address - (unsigned long)ram) / PAGE);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

/* lock held: one page to the file, unless it is pinned or gone */
static void evict(unsigned long i)
{
	if (out[i] || uffd_move(uffd, staging + i * PAGE, ram + i * PAGE, PAGE) != (__s64)PAGE)
		return;
	CHECK(pwrite(file, staging + i * PAGE, PAGE, i * PAGE) == (ssize_t)PAGE, "%m");
	madvise(staging + i * PAGE, PAGE, MADV_DONTNEED);
	out[i] = true;
	evicted++;
}

static void cycle(void)
{
	struct s_region hot[PAGES / 2 + 1];
	struct s_arg a = {
		.size = sizeof(a), .start = (unsigned long)ram,
		.end = (unsigned long)ram + PAGES * PAGE,
		.vec = (unsigned long)hot, .vec_len = PAGES / 2 + 1,
		.category_mask = C_ACCESSED, .return_mask = C_ACCESSED,
	};
	unsigned long next = a.start;
	int n;

	/* Trap the next access to everything, and note it by itself */
	CHECK(!rwprotect(uffd, ram, PAGES * PAGE, M_RWP), "%m");
	usleep(200000);
	/* From here on accesses to what is still cold wait, first of all */
	CHECK(!set_mode(uffd, 0, F_RWP_ASYNC), "%m");
	/* Ask for the hot pages: the complement is cold */
	n = ioctl(pagemap, U_PAGEMAP_SCAN, &a);
	CHECK(n >= 0, "%m");
	pthread_mutex_lock(&lock);
	for (int r = 0; r <= n; r++) {
		unsigned long end = r < n ? hot[r].start : (unsigned long)a.end;

		for (; next < end; next += PAGE)
			evict((next - (unsigned long)ram) / PAGE);
		next = r < n ? hot[r].end : end;
	}
	pthread_mutex_unlock(&lock);
	/* Wakes all; those that want an evicted page ask again */
	CHECK(!set_mode(uffd, F_RWP_ASYNC, 0), "%m");
}

static void *guest(void *arg)
{
	for (unsigned long round = 1; round <= 60; round++)
		for (unsigned long i = 0; i < (round > 40 ? PAGES : PAGES / 4); i++) {
			volatile unsigned long *p = (void *)(ram + i * PAGE);
			unsigned long want = i < PAGES / 4 || round > 41 ? round - 1 : 0;

			CHECK(p[1] == want, "page %lu holds %lu, not %lu", i, p[1], want);
			p[1] = round;
			if (!(i & 63))
				usleep(1000);
		}
	return NULL;
}

int main(void)
{
	const int rw = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	pthread_t server, vcpu;
	FILE *tmp = tmpfile();

	uffd = uffd_open(F_RWP | F_RWP_ASYNC | F_MOVE);
	file = fileno(tmp);
	pagemap = fileno(fopen("/proc/self/pagemap", "r"));
	ram = mmap(NULL, PAGES * PAGE, rw, anon, -1, 0);
	staging = mmap(NULL, PAGES * PAGE, rw, anon, -1, 0);
	madvise(ram, PAGES * PAGE, MADV_NOHUGEPAGE);
	madvise(staging, PAGES * PAGE, MADV_NOHUGEPAGE);
	memset(ram, 0, PAGES * PAGE);
	/* MISSING from the start here; QEMU adds it where it evicts first */
	CHECK(!reg(uffd, ram, PAGES * PAGE, R_RWP | R_MISSING), "%m");
	CHECK(!reg(uffd, staging, PAGES * PAGE, R_WP), "%m");

	pthread_create(&server, NULL, serve_faults, NULL);
	pthread_create(&vcpu, NULL, guest, NULL);
	for (int i = 0; i < 5; i++)
		cycle();
	pthread_join(vcpu, NULL);
	pthread_mutex_lock(&lock);
	for (unsigned long i = 0; i < PAGES; i++)
		fetch(i);
	pthread_mutex_unlock(&lock);
	for (unsigned long i = 0; i < PAGES; i++)
		CHECK(((unsigned long *)(ram + i * PAGE))[1] == 60, "page %lu", i);
	finished = true;
	pthread_join(server, NULL);
	printf("TAP version 13\n1..1\n%s 1 example: evicted %lu, fetched %lu\n",
	       evicted && fetched ? "ok" : "not ok", evicted, fetched);
	return !(evicted && fetched);
}
