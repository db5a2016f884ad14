// SPDX-License-Identifier: GPL-2.0
/*
 * Armed stays armed, and what must not be armed is not: fork, swap, migration,
 * mremap, UFFDIO_MOVE, KSM, zapping. Small pages and hugetlbfs; transparent
 * huge pages have a program of their own.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/swap.h>
#include <sys/sysinfo.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Even pages armed, odd pages resolved, that is writable again */
static int arm_even(struct mem *m, __u64 features)
{
	int fd = uffd_open(F_RWP | F_RWP_ASYNC | features);

	mem_fill(m);
	EQ(reg(fd, m->p, m->len, R_RWP), 0);
	EQ(rwprotect(fd, m->p, m->len, M_RWP), 0);
	for (int i = 1; i < NPAGES; i += 2)
		((volatile char *)m->p)[i * m->psz + 100] = 100;
	return fd;
}

static void check_even(struct mem *m, const char *where)
{
	for (int i = 0; i < NPAGES; i++)
		CHECK(armed(m->p + i * m->psz) == !(i & 1),
		      "%s: page %d is %sarmed", where, i, i & 1 ? "" : "not ");
}

/* In a child: nothing may be armed, and everything must be usable. */
static void child_plain(struct mem *m, const char *where)
{
	for (int i = 0; i < NPAGES; i++)
		CHECK(!bit57(m->p + i * m->psz), "%s: child's page %d", where, i);
	mem_check(m, where);
}

/*
 * A page cannot be taken as long as it waits, on the CPU that filled it, for its
 * turn to be put on an LRU list. MADV_PAGEOUT drains the CPU it runs on.
 */
static void pageout(char *p, int try)
{
	cpu_set_t all, one;

	CHECK(!sched_getaffinity(0, sizeof(all), &all), "%m");
	CPU_ZERO(&one);
	CPU_SET(try % get_nprocs(), &one);
	sched_setaffinity(0, sizeof(one), &one);
	madvise(p, 4096, MADV_PAGEOUT);
	sched_setaffinity(0, sizeof(all), &all);
}

static void pageout_even(struct mem *m)
{
	need_swap();
	for (int i = 0; i < NPAGES; i += 2)
		for (int n = 0; n < 50 && !(cat(m->p + i * 4096, 4096) & C_SWAPPED); n++)
			pageout(m->p + i * 4096, n);
	CHECK(cat(m->p, 4096) & C_SWAPPED, "would not swap");
}

static void fork_noevent_swapped(enum kind kind, bool swapped)
{
	struct mem m = mem_new(kind, RW);
	bool private = kind_private(kind);
	int status;
	pid_t pid;

	arm_even(&m, 0);
	if (swapped)
		pageout_even(&m);
	pid = fork();
	if (!pid) {
		child_plain(&m, "fork");
		/* Private pages are the child's own from here on (H2) */
		for (int i = 0; private && i < NPAGES; i++)
			memset(m.p + i * m.psz, 200, 4096);
		_exit(0);
	}
	/* The parent writes as well, to pages that were writable */
	for (int i = 1; i < NPAGES; i += 2)
		((volatile char *)m.p)[i * m.psz + 200] = 99;
	waitpid(pid, &status, 0);
	EQ(status, 0);
	check_even(&m, "parent after fork");
	mem_check(&m, "parent after fork");
	EQ(m.p[m.psz + 200], 99);
	CHECK(hot(m.p), "no trap after fork");
}

static void fork_noevent(enum kind kind)
{
	fork_noevent_swapped(kind, false);
}

static void fork_noevent_swap(enum kind kind)
{
	fork_noevent_swapped(kind, true);
}

struct forker {
	pthread_t thread;
	struct mem *m;
	void (*child)(struct mem *m);
	int flags;
	int status;
};

static void *forker_thread(void *arg)
{
	struct forker *f = arg;
	pid_t pid = f->flags ? syscall(__NR_clone, f->flags | SIGCHLD, 0, 0, 0, 0) :
			       fork();

	if (!pid) {
		alarm(60);
		f->child(f->m);
		_exit(0);
	}
	waitpid(pid, &f->status, 0);
	return NULL;
}

static void forker_start(struct forker *f, struct mem *m,
			 void (*child)(struct mem *), int flags)
{
	*f = (struct forker){ .m = m, .child = child, .flags = flags };
	CHECK(!pthread_create(&f->thread, NULL, forker_thread, f), "thread");
}

static void child_armed(struct mem *m)
{
	check_even(m, "child");
	mem_check(m, "child");
	for (int i = 0; i < NPAGES; i++)
		CHECK(hot(m->p + i * m->psz), "no trap in the child, page %d", i);
}

static void fork_event(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = arm_even(&m, F_FORK);
	struct u_msg msg;
	struct forker f;

	forker_start(&f, &m, child_armed, 0);
	while (read(fd, &msg, sizeof(msg)) != sizeof(msg))
		usleep(1000);
	EQ(msg.event, MSG_FORK);
	pthread_join(f.thread, NULL);
	EQ(f.status, 0);
	check_even(&m, "parent");
}

static void child_after_lost_event(struct mem *m)
{
	CHECK(!vmflag(m->p, "ur"), "still registered");
	child_plain(m, "lost fork event");
	for (int i = 0; i < NPAGES; i++)
		((volatile char *)m->p)[i * m->psz + 50] = 1;
}

/* Nobody reads the event, the descriptor goes: the child must not hang (H28) */
static void fork_event_unread(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = arm_even(&m, F_FORK);
	struct forker f;

	/* Else the child's copy of the descriptor would keep it open */
	forker_start(&f, &m, child_after_lost_event, CLONE_FILES);
	usleep(300000);
	close(fd);
	pthread_join(f.thread, NULL);
	EQ(f.status, 0);
}

/* mm/gup_test.h: hold the pages pinned */
struct gup_pin { __u64 addr, size; __u32 flags; };
#define GUP_PIN_START	_IOW('g', 7, struct gup_pin)
#define GUP_PIN_STOP	_IO('g', 8)
#define GUP_PIN_WRITE	1

/* The child of a fork gets copies of pinned pages at once: armed ones too (H3) */
static void fork_pinned(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	struct gup_pin pin = { (uintptr_t)m.p, m.len, GUP_PIN_WRITE };
	int fd = arm_even(&m, F_FORK), gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	struct u_msg msg;
	struct forker f;

	if (gup < 0)
		skip("no gup_test in this kernel");
	CHECK(!ioctl(gup, GUP_PIN_START, &pin), "%m");
	for (int i = 0; i < NPAGES; i++)
		CHECK(hot(m.p + i * m.psz), "pinned and not hot, page %d", i);
	for (int i = 0; i < NPAGES; i += 2)
		EQ(rwprotect(fd, m.p + i * m.psz, m.psz, M_RWP), 0);
	forker_start(&f, &m, child_armed, 0);
	while (read(fd, &msg, sizeof(msg)) != sizeof(msg))
		usleep(1000);
	pthread_join(f.thread, NULL);
	EQ(f.status, 0);
	check_even(&m, "parent");
	CHECK(!ioctl(gup, GUP_PIN_STOP), "%m");
	mem_check(&m, "parent");
}

static void move_to(void *page, int node)
{
	int status;

	syscall(__NR_move_pages, 0, 1, &page, &node, &status, 2 /* MOVE */);
}

/* shared by fork or not x read or write: armed across swap, trap afterwards */
static void swap_in(enum kind kind)
{
	for (int v = 0; v < 4; v++) {
		bool write = v & 1, shared = v & 2;
		struct mem m = mem_new(kind, RW);
		int fd = arm_even(&m, 0), status;
		struct handler h;
		struct toucher t;
		pid_t pid = 0;

		pageout_even(&m);
		check_even(&m, "swapped");
		if (shared) {
			pid = fork();
			if (!pid) {
				pause();
				_exit(0);
			}
		}
		EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
		toucher_start(&t, m.p + 7, write);
		CHECK(toucher_blocked(&t), "went through");
		CHECK(armed(m.p) && cat(m.p, 4096) & C_PRESENT, "not back, armed");
		/* An entry that became writable shows when it is migrated (H15) */
		move_to(m.p, 0);
		move_to(m.p, 1);
		CHECK(armed(m.p), "disarmed by migration");
		handler_start(&h, fd, 4096);
		toucher_join(&t);
		EQ(handler_stop(&h), 1);
		EQ(h.last.pf.flags, FL_RWP | (write ? FL_WRITE : 0));
		CHECK(hot(m.p) && armed(m.p + 2 * 4096), "wrong state");
		EQ(m.p[7], write ? 77 : 1);
		EQ(set_mode(fd, F_RWP_ASYNC, 0), 0);
		mem_check(&m, "swapped in");
		CHECK(hot(m.p + 2 * 4096), "swapped in and not hot");
		if (shared) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
		}
		close(fd);
	}
}

static void swap_off(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	char dev[128];
	FILE *f;

	arm_even(&m, 0);
	pageout_even(&m);
	f = fopen("/proc/swaps", "r");
	CHECK(fgets(dev, sizeof(dev), f) && fscanf(f, "%127s", dev) == 1, "no swap");
	fclose(f);
	CHECK(!swapoff(dev), "%m");
	CHECK(!swapon(dev, 0), "%m");
	CHECK(cat(m.p, 4096) & C_PRESENT, "not brought back");
	check_even(&m, "swapoff");
	mem_check(&m, "swapoff");
	CHECK(hot(m.p), "no trap");
}

static void migrate(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	void *pages[NPAGES];
	int nodes[NPAGES], status[NPAGES], before[NPAGES], moved = 0;

	if (access("/sys/devices/system/node/node1", F_OK))
		skip("one NUMA node only");
	arm_even(&m, 0);
	for (int i = 0; i < NPAGES; i++)
		pages[i] = m.p + i * m.psz;
	EQ(syscall(__NR_move_pages, 0, NPAGES, pages, NULL, before, 0), 0);
	for (int i = 0; i < NPAGES; i++)
		nodes[i] = !before[i];
	if (kind_huge(kind)) {
		set("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "64");
		set("/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "64");
	}
	syscall(__NR_move_pages, 0, NPAGES, pages, nodes, status, 2 /* MOVE */);
	for (int i = 0; i < NPAGES; i++)
		moved += status[i] == nodes[i];
	CHECK(moved == NPAGES, "only %d pages moved, status %d", moved, status[0]);
	check_even(&m, "migrated");
	mem_check(&m, "migrated");
	CHECK(hot(m.p), "no trap");
}

/* Faults that reading all of it takes */
static long faults_of_reading(struct mem *m)
{
	long before = minflt();

	for (int i = 0; i < NPAGES; i++)
		(void)((volatile char *)m->p)[i * m->psz];
	return minflt() - before;
}

/* Faults that writing to the odd pages takes */
static long faults_of_writing(struct mem *m)
{
	long before = minflt();

	for (int i = 1; i < NPAGES; i += 2)
		((volatile char *)m->p)[i * m->psz + 50] = 1;
	return minflt() - before;
}

static void mremap_noevent(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	char *to;
	long n;

	arm_even(&m, 0);
	to = mmap(NULL, 2 * m.len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	to = (char *)(((uintptr_t)to + m.len - 1) & ~(m.len - 1));
	CHECK(mremap(m.p, m.len, m.len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "%m");
	m.p = to;
	n = faults_of_reading(&m);
	CHECK(n < NPAGES / 2, "%ld faults: left inaccessible", n);
	n = faults_of_writing(&m);
	CHECK(n < NPAGES / 2, "%ld faults: pages that were not armed changed", n);
	CHECK(!vmflag(m.p, "ur"), "still registered");
	child_plain(&m, "mremap");
	for (int i = 0; i < NPAGES; i++)
		((volatile char *)m.p)[i * m.psz + 50] = 1;
}

static void *event_reader(void *arg)
{
	struct u_msg msg;

	while (read(*(int *)arg, &msg, sizeof(msg)) != sizeof(msg))
		usleep(1000);
	return NULL;
}

/* What arrives beside memory that it could be merged with is unregistered alone */
static void mremap_neighbour(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	char *area, *second;

	CHECK(!ftruncate(m.fd, 2 * m.len), "%m");
	area = mmap(NULL, 3 * m.len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mmap(area, m.len, RW, MAP_SHARED | MAP_FIXED, m.fd, 0) == area, "%m");
	m.p = area;
	second = mmap(NULL, m.len, RW, MAP_SHARED, m.fd, m.len);
	CHECK(second != MAP_FAILED, "%m");
	mem_fill(&m);
	memset(second, 1, m.len);
	for (int i = 0; i < 2; i++) {
		EQ(reg(fd, i ? second : area, m.len, R_RWP), 0);
		EQ(rwprotect(fd, i ? second : area, m.len, M_RWP), 0);
	}
	area += m.len;
	CHECK(mremap(second, m.len, m.len, MREMAP_MAYMOVE | MREMAP_FIXED, area) ==
	      area, "%m");
	CHECK(vmflag(m.p, "ur") && !vmflag(area, "ur"), "wrong one registered");
	for (int i = 0; i < NPAGES; i++) {
		CHECK(armed(m.p + i * m.psz), "page %d", i);
		CHECK(!bit57(area + i * m.psz), "page %d", i);
	}
}

static void mremap_event(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = arm_even(&m, F_REMAP);
	pthread_t reader;
	char *to;

	to = mmap(NULL, 2 * m.len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	to = (char *)(((uintptr_t)to + m.len - 1) & ~(m.len - 1));
	pthread_create(&reader, NULL, event_reader, &fd);
	CHECK(mremap(m.p, m.len, m.len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "%m");
	pthread_join(reader, NULL);
	m.p = to;
	CHECK(vmflag(m.p, "ur"), "not registered");
	check_even(&m, "mremap");
	mem_check(&m, "mremap");
	CHECK(hot(m.p), "no trap");
}

/* page, zero page and swap entry into an RWP VMA and into a MISSING one */
static void uffd_moves(enum kind kind)
{
	for (int v = 0; v < 6; v++) {
		bool rwp = v & 1;
		int what = v / 2;
		struct mem src = mem_new(ANON, RW), dst = mem_new(ANON, RW);
		int fd = uffd_open(F_RWP | F_RWP_ASYNC | F_MOVE);

		EQ(reg(fd, src.p, src.len, R_RWP), 0);
		EQ(reg(fd, dst.p, dst.len, rwp ? R_RWP : R_MISSING), 0);
		if (what == 1)
			(void)*(volatile char *)src.p;
		else
			mem_fill(&src);
		EQ(rwprotect(fd, src.p, src.len, M_RWP), 0);
		if (what == 2)
			pageout_even(&src);
		EQ(uffd_move(fd, dst.p, src.p, 4096), 4096);
		EQ(cat(src.p, 4096) & (C_PRESENT | C_SWAPPED), 0);
		if (rwp)
			CHECK(armed(dst.p), "arrived unarmed, case %d", what);
		else
			CHECK(!bit57(dst.p), "arrived with a stale bit, case %d", what);
		EQ(dst.p[0], what == 1 ? 0 : 1);
		dst.p[1] = 5;
		if (rwp)
			CHECK(hot(dst.p), "no trap");
		else
			CHECK(!bit57(dst.p), "a stale bit after swap-in");
		close(fd);
	}
}

static void zap(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = arm_even(&m, 0);

	if (m.fd >= 0 && !kind_private(kind))
		EQ(fallocate(m.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			     0, m.psz), 0);
	EQ(madvise(m.p, m.psz, MADV_DONTNEED), 0);
	CHECK(!bit57(m.p), "a marker was left (H32)");
	((volatile char *)m.p)[3] = 3;		/* H32: no livelock */
	CHECK(hot(m.p) && !bit57(m.p), "populated with the bit");
	EQ(rwprotect(fd, m.p, m.psz, M_RWP), 0);
	CHECK(armed(m.p), "not armed anew");
	EQ(m.p[3], 3);
}

/*
 * What reclaim takes out of a mapping of a file is not armed any more, and not
 * reported either: the scan for what is hot stays right.
 */
static void pageout_shmem(enum kind kind)
{
	struct mem m = mem_new(kind, RW);

	need_swap();
	arm_even(&m, 0);
	for (int n = 0; n < 50 && cat(m.p, 4096) & C_PRESENT; n++)
		madvise(m.p, m.len, MADV_PAGEOUT);
	CHECK(!(cat(m.p, 4096) & C_PRESENT), "would not go");
	CHECK(!bit57(m.p) && !hot(m.p), "something was left");
	mem_check(&m, "back");
	CHECK(hot(m.p) && !bit57(m.p), "back and not hot");
}

/* Lazily freed is not accessed; what then is written stays */
static void madv_free(enum kind kind)
{
	struct mem m = mem_new(kind, RW);

	arm_even(&m, 0);
	EQ(madvise(m.p, m.len, MADV_FREE), 0);
	check_even(&m, "MADV_FREE");
	memset(m.p, 50, 4096);
	CHECK(hot(m.p), "no trap");
	for (int n = 0; n < 5; n++)
		madvise(m.p, m.len, MADV_PAGEOUT);
	EQ(m.p[9], 50);
}

static void hugetlb_cow(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int status;
	pid_t pid;

	arm_even(&m, 0);
	pid = fork();
	if (!pid) {
		mem_check(&m, "child");
		sleep(1);
		mem_check(&m, "child later");
		_exit(0);
	}
	usleep(300000);
	for (int i = 0; i < NPAGES; i++)
		memset(m.p + i * m.psz, 90 + i, 4096);
	waitpid(pid, &status, 0);
	EQ(status, 0);
	for (int i = 0; i < NPAGES; i++)
		EQ(m.p[i * m.psz], 90 + i);
}

static void ksm_setup(struct mem *m)
{
	if (!set("/sys/kernel/mm/ksm/run", "2"))
		skip("no KSM");
	for (int i = 0; i < NPAGES; i++)
		memset(m->p + i * 4096, 7, 4096);
	EQ(madvise(m->p, m->len, MADV_MERGEABLE), 0);
	set("/sys/kernel/mm/ksm/pages_to_scan", "5000");
	set("/sys/kernel/mm/ksm/sleep_millisecs", "10");
}

static void ksm_wait(void)
{
	set("/sys/kernel/mm/ksm/run", "1");
	for (int i = 0; i < 300 && get("/sys/kernel/mm/ksm/pages_sharing") < NPAGES - 1; i++)
		usleep(100000);
	CHECK(get("/sys/kernel/mm/ksm/pages_sharing") >= NPAGES - 1, "no merge");
}

static void ksm_merge(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	ksm_setup(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	ksm_wait();
	for (int i = 0; i < NPAGES; i++)
		CHECK(armed(m.p + i * 4096), "page %d lost its state", i);
	m.p[0] = 1;
	CHECK(hot(m.p) && armed(m.p + 4096), "no trap");
	EQ(m.p[4096], 7);
	set("/sys/kernel/mm/ksm/run", "2");
}

static __u64 frame(void *p)
{
	__u64 e = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	CHECK(pread(fd, &e, 8, (uintptr_t)p / 4096 * 8) == 8, "%m");
	close(fd);
	return e & ((1ull << 55) - 1);
}

/* Unmerging is no access, and must not wait for userspace */
static void ksm_unmerge(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP);
	struct handler h;

	ksm_setup(&m);
	ksm_wait();
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	CHECK(set("/sys/kernel/mm/ksm/run", "2"), "unmerge: %m");
	EQ(get("/sys/kernel/mm/ksm/pages_sharing"), 0);
	for (int i = 0; i < NPAGES; i++) {
		CHECK(armed(m.p + i * 4096), "page %d lost its state", i);
		CHECK(!i || frame(m.p + i * 4096) != frame(m.p),
		      "page %d is shared still", i);
	}
	handler_start(&h, fd, 4096);
	for (int i = 0; i < NPAGES; i++)
		EQ(m.p[i * 4096], 7);
	EQ(handler_stop(&h), NPAGES);
}

static const struct test tests[] = {
	{ "fork-noevent", fork_noevent, ALL_KINDS },
	{ "fork-noevent-swapped", fork_noevent_swap, K(ANON) },
	{ "fork-event-child-armed", fork_event, ALL_KINDS },
	{ "fork-pinned", fork_pinned, K(ANON) | K(HUGETLB_PRIV) },
	{ "fork-event-unread", fork_event_unread, ALL_KINDS },
	{ "swap-in", swap_in, K(ANON) },
	{ "swapoff", swap_off, K(ANON) },
	{ "migrate", migrate, ALL_KINDS },
	{ "mremap-noevent", mremap_noevent, ALL_KINDS },
	{ "mremap-neighbour", mremap_neighbour, K(SHMEM) },
	{ "mremap-event", mremap_event, ALL_KINDS },
	{ "move", uffd_moves },
	{ "zap", zap, ALL_KINDS },
	{ "pageout-shmem", pageout_shmem, K(SHMEM) },
	{ "madv-free", madv_free, K(ANON) },
	{ "hugetlb-cow", hugetlb_cow, K(HUGETLB_PRIV) },
	{ "ksm-merge-armed", ksm_merge },
	{ "ksm-unmerge-armed", ksm_unmerge },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
