// SPDX-License-Identifier: GPL-2.0
/*
 * Transparent huge pages: armed whole, in part, split, moved, copied. What is
 * armed as a huge page is armed 512 times after a split.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <sys/syscall.h>
#include <sys/wait.h>

#define HP (2ul << 20)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static bool is_huge(char *p)
{
	return cat(p, 4096) & C_HUGE;
}

static void all_armed(char *p, const char *where)
{
	for (int i = 0; i < 512; i++)
		CHECK(armed(p + i * 4096), "%s: page %d is not armed", where, i);
}

static void all_plain(char *p, const char *where)
{
	for (int i = 0; i < 512; i++)
		CHECK(!bit57(p + i * 4096), "%s: page %d has the bit", where, i);
}

static char *thp_armed(size_t n, int *fd, __u64 features)
{
	char *p = thp_new(n);

	*fd = uffd_open(F_RWP | F_RWP_ASYNC | features);
	EQ(reg(*fd, p, n * HP, R_RWP), 0);
	EQ(rwprotect(*fd, p, n * HP, M_RWP), 0);
	CHECK(is_huge(p), "arming split it");
	all_armed(p, "armed");
	return p;
}

static void whole(enum kind kind)
{
	int fd;
	char *p = thp_armed(2, &fd, 0);

	((volatile char *)p)[5 * 4096] = 1;
	CHECK(is_huge(p) && hot(p) && hot(p + HP - 4096), "one touch, all hot");
	CHECK(armed(p + HP), "neighbour");
	EQ(p[HP], 2);
	EQ(rwprotect(fd, p, 2 * HP, M_RWP), 0);
	EQ(rwprotect(fd, p, 2 * HP, 0), 0);
	CHECK(is_huge(p) && hot(p), "not disarmed");
	all_plain(p, "disarmed");
}

static void sync_address(enum kind kind)
{
	int fd;
	char *p = thp_armed(1, &fd, 0);
	struct handler h;
	struct toucher t;

	EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
	handler_start(&h, fd, HP);
	toucher_start(&t, p + 7 * 4096 + 9, true);
	toucher_join(&t);
	EQ(handler_stop(&h), 1);
	EQ(h.last.pf.address, (uintptr_t)p + 7 * 4096);
	EQ(h.last.pf.flags, FL_RWP | FL_WRITE);
	CHECK(hot(p), "not resolved");
}

static void partial(enum kind kind)
{
	char *p = thp_new(1);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	EQ(reg(fd, p, HP, R_RWP), 0);
	EQ(rwprotect(fd, p + 16 * 4096, 16 * 4096, M_RWP), 0);
	CHECK(!is_huge(p), "not split");
	for (int i = 0; i < 512; i++)
		CHECK(armed(p + i * 4096) == (i >= 16 && i < 32), "page %d", i);
	/* The other way: part of an armed one is disarmed */
	p = thp_armed(1, &fd, 0);
	EQ(rwprotect(fd, p, 4096, 0), 0);
	CHECK(hot(p) && armed(p + 4096), "partial disarm");
	EQ(p[0], 1);
	EQ(((volatile char *)p)[8192], 0);
	CHECK(hot(p + 8192) && armed(p + 4096), "no trap");
}

static void split(enum kind kind)
{
	int fd;
	char *p = thp_armed(1, &fd, 0), cmd[128];

	snprintf(cmd, sizeof(cmd), "%d,0x%lx,0x%lx", getpid(),
		 (unsigned long)p, (unsigned long)p + HP);
	if (!set("/sys/kernel/debug/split_huge_pages", cmd))
		skip("no split_huge_pages in debugfs");
	CHECK(!is_huge(p), "not split");
	EQ(cat(p, 4096) & C_PRESENT, C_PRESENT);
	/* Zero-filled subpages may have become the zero page; armed as well */
	all_armed(p, "split");
	EQ(p[0], 1);
	EQ(p[4096], 0);
	CHECK(hot(p) && hot(p + 4096) && armed(p + 8192), "no trap");
}

static void split_by_mprotect(enum kind kind)
{
	int fd;
	char *p = thp_armed(1, &fd, 0);

	EQ(mprotect(p + 4096, 4096, PROT_READ), 0);
	all_armed(p, "mprotect");
	EQ(mprotect(p + 4096, 4096, RW), 0);
	all_armed(p, "mprotect back");
	memset(p, 3, HP);
	EQ(p[HP - 1], 3);
	all_plain(p, "touched");
}

static void zero(enum kind kind)
{
	char *p = mmap(NULL, 2 * HP, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	p = (char *)(((uintptr_t)p + HP - 1) & ~(HP - 1));
	if (madvise(p, HP, MADV_HUGEPAGE))
		skip("no transparent huge pages");
	(void)*(volatile char *)p;
	if (!is_huge(p))
		skip("no huge zero page");
	EQ(reg(fd, p, HP, R_RWP), 0);
	EQ(rwprotect(fd, p, HP, M_RWP), 0);
	all_armed(p, "huge zero page");
	EQ(rwprotect(fd, p, 4096, 0), 0);	/* splits */
	CHECK(hot(p) && armed(p + 4096), "split huge zero page");
	EQ(((volatile char *)p)[12288], 0);
	CHECK(hot(p + 12288), "no trap when read");
	p[4096] = 1;
	EQ(p[4097], 0);
	CHECK(hot(p + 4096) && armed(p + 8192), "no trap");
}

static void fork_plain(enum kind kind)
{
	int fd, status;
	char *p = thp_armed(2, &fd, 0);
	pid_t pid;

	p[HP + 1] = 1;				/* the second one is writable */
	pid = fork();
	if (!pid) {
		all_plain(p, "child");
		EQ(p[0], 1);
		EQ(p[HP], 2);
		memset(p, 9, 2 * HP);
		_exit(0);
	}
	p[HP + 2] = 3;
	waitpid(pid, &status, 0);
	EQ(status, 0);
	all_armed(p, "parent");
	EQ(p[0], 1);
	EQ(p[HP], 2);
	EQ(p[HP + 2], 3);
}

static void mremap_moves(enum kind kind)
{
	int fd;
	char *p = thp_armed(2, &fd, 0), *to;

	p[HP] = 2;				/* the second one is not armed */
	to = mmap(NULL, 3 * HP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	to = (char *)(((uintptr_t)to + HP - 1) & ~(HP - 1));
	CHECK(mremap(p, 2 * HP, 2 * HP, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "%m");
	CHECK(is_huge(to), "split on the way");
	all_plain(to, "mremap");
	EQ(to[0], 1);
	EQ(to[HP], 2);
	to[1] = to[HP + 1] = 5;
}

static void uffd_moves(enum kind kind)
{
	for (int rwp = 0; rwp < 2; rwp++) {
		int fd;
		char *p = thp_armed(1, &fd, F_MOVE), *to;

		to = mmap(NULL, 2 * HP, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		to = (char *)(((uintptr_t)to + HP - 1) & ~(HP - 1));
		madvise(to, HP, MADV_HUGEPAGE);
		EQ(reg(fd, to, HP, rwp ? R_RWP : R_MISSING), 0);
		EQ(uffd_move(fd, to, p, HP), HP);
		CHECK(is_huge(to), "split on the way");
		if (rwp)
			all_armed(to, "moved");
		else
			all_plain(to, "moved");
		EQ(to[0], 1);
		to[1] = 2;
		close(fd);
	}
}

static void migrate(enum kind kind)
{
	int fd, node, status = -1, to;
	char *p = thp_armed(1, &fd, 0);
	void *page = p;

	if (access("/sys/devices/system/node/node1", F_OK))
		skip("one NUMA node only");
	EQ(syscall(__NR_move_pages, 0, 1, &page, NULL, &node, 0), 0);
	to = !node;
	syscall(__NR_move_pages, 0, 1, &page, &to, &status, 2);
	if (status != to || !is_huge(p))
		skip("did not move as a huge page");
	all_armed(p, "migrated");
	EQ(p[0], 1);
	CHECK(hot(p), "no trap");
}

/* Collapsing would make one state of 512: refused while any page is armed */
static void collapse(enum kind kind)
{
	char *p = mmap(NULL, 2 * HP, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	p = (char *)(((uintptr_t)p + HP - 1) & ~(HP - 1));
	if (madvise(p, HP, MADV_NOHUGEPAGE))
		skip("no transparent huge pages");
	for (int i = 0; i < 512; i++)
		p[i * 4096] = i;
	EQ(madvise(p, HP, MADV_HUGEPAGE), 0);
	EQ(reg(fd, p, HP, R_RWP), 0);
	EQ(rwprotect(fd, p + 4096, 4096, M_RWP), 0);
	CHECK(madvise(p, HP, MADV_COLLAPSE), "collapsed over an armed page");
	CHECK(armed(p + 4096) && !is_huge(p), "armed page lost");
	EQ(rwprotect(fd, p + 4096, 4096, 0), 0);
	EQ(madvise(p, HP, MADV_COLLAPSE), 0);
	CHECK(is_huge(p) && hot(p), "not collapsed");
	EQ(p[5 * 4096], 5);
}

/* File memory: the whole is dropped, not armed; the next access counts */
static void shmem(enum kind kind)
{
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	char *p = thp_new_shmem();

	EQ(reg(fd, p, HP, R_RWP), 0);
	EQ(rwprotect(fd, p, HP, M_RWP), 0);
	EQ(cat(p, 4096) & C_ACCESSED, 0);
	EQ(p[0], 1);
	CHECK(hot(p), "touched and not hot");
}

static const struct test tests[] = {
	{ "thp-whole", whole },
	{ "thp-sync-address", sync_address },
	{ "thp-partial", partial },
	{ "thp-split", split },
	{ "thp-split-by-mprotect", split_by_mprotect },
	{ "thp-zero", zero },
	{ "thp-fork-noevent", fork_plain },
	{ "thp-mremap-noevent", mremap_moves },
	{ "thp-move", uffd_moves },
	{ "thp-migrate", migrate },
	{ "thp-collapse-refused", collapse },
	{ "thp-shmem", shmem },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
