// SPDX-License-Identifier: GPL-2.0
/*
 * PM_SCAN_RWP_REARM: what is reported is armed in the same step, and nothing
 * else is. Skipped on a kernel that does not know the flag: upstream has none.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <sys/wait.h>

#define HP (2ul << 20)
#define MAX_REGIONS 256

struct result {
	int n;				/* regions, or -errno */
	unsigned long pages;		/* that they have, of the size asked for */
	unsigned int map;		/* which, of the first 32 */
	__u64 walk_end;
};

static void need_rearm(void)
{
	if (!can_rearm())
		skip("the kernel does not know PM_SCAN_RWP_REARM");
}

/* [p, p + len) in pages of psz; at most regions and max_pages of 4096 (0: any) */
static struct result rearm_as(void *p, size_t len, size_t psz, int regions,
			      __u64 max_pages, __u64 return_mask)
{
	struct s_region r[MAX_REGIONS];
	struct s_arg a = {
		.size = sizeof(a), .flags = S_RWP_REARM, .start = (uintptr_t)p,
		.end = (uintptr_t)p + len, .vec = (uintptr_t)r,
		.vec_len = regions, .max_pages = max_pages,
		.category_mask = C_ACCESSED, .return_mask = return_mask,
	};
	struct result result = { .n = pagemap_scan(&a), .walk_end = a.walk_end };

	for (int i = 0; i < result.n; i++)
		for (__u64 at = r[i].start; at < r[i].end; at += psz) {
			size_t page = (at - (uintptr_t)p) / psz;

			CHECK(r[i].categories & C_ACCESSED, "not asked for");
			result.pages++;
			if (page < 32)
				result.map |= 1u << page;
		}
	return result;
}

static struct result rearm(struct mem *m, int regions)
{
	return rearm_as(m->p, m->len, m->psz, regions, 0, C_ACCESSED);
}

/* Registered and armed, then pages of the mask touched */
static struct mem touched(enum kind kind, int *fd, unsigned int mask)
{
	struct mem m = mem_new(kind, RW);

	need_rearm();
	*fd = uffd_open(F_RWP | F_RWP_ASYNC);
	mem_fill(&m);
	EQ(reg(*fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(*fd, m.p, m.len, M_RWP), 0);
	for (int i = 0; i < NPAGES; i++)
		if (mask & 1u << i)
			(void)*(volatile char *)(m.p + i * m.psz);
	return m;
}

static void check_armed(struct mem *m, unsigned int mask)
{
	for (int i = 0; i < NPAGES; i++)
		CHECK(armed(m->p + i * m->psz) == !!(mask & 1u << i), "page %d", i);
}

static void rearm_errno(enum kind kind)
{
	struct s_arg a = { .size = sizeof(a), .flags = S_RWP_REARM };
	struct mem m;
	int fd;

	need_rearm();
	a.flags = S_RWP_REARM | S_WP_MATCHING;
	EQ(pagemap_scan(&a), -EINVAL);
	a.flags = S_RWP_REARM | 1ull << 47;
	EQ(pagemap_scan(&a), -EINVAL);
	a.flags = S_RWP_REARM << 1;
	EQ(pagemap_scan(&a), -EINVAL);

	m = touched(ANON, &fd, 1);
	a = (struct s_arg){
		.size = sizeof(a), .flags = S_RWP_REARM | S_CHECK_WPASYNC,
		.start = (uintptr_t)m.p, .end = (uintptr_t)m.p + m.len,
	};
	EQ(pagemap_scan(&a), -EPERM);
	CHECK(hot(m.p), "a call that failed has armed");
}

/* Other memory is skipped, whatever is asked for */
static void wp_rearm(enum kind kind)
{
	struct mem plain = mem_new(ANON, RW), wp = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_WP_ASYNC);
	struct s_arg a;
	struct s_region r;

	need_rearm();
	mem_fill(&plain);
	mem_fill(&wp);
	EQ(reg(fd, wp.p, wp.len, R_WP), 0);
	a = (struct s_arg){
		.size = sizeof(a), .flags = S_RWP_REARM,
		.start = (uintptr_t)wp.p, .end = (uintptr_t)wp.p + wp.len,
	};
	EQ(pagemap_scan(&a), 0);
	EQ(a.walk_end, a.end);
	for (int i = 0; i < NPAGES; i++)
		CHECK(!bit57(wp.p + i * wp.psz), "page %d is write-protected", i);
	a = (struct s_arg){
		.size = sizeof(a), .flags = S_RWP_REARM,
		.start = (uintptr_t)plain.p, .end = (uintptr_t)plain.p + plain.len,
		.vec = (uintptr_t)&r, .vec_len = 1, .category_mask = C_PRESENT,
		.return_mask = C_PRESENT,
	};
	EQ(pagemap_scan(&a), 0);
	mem_check(&plain, "plain");
}

/* Both ways that a scan goes: for what was accessed alone, and for more */
static void rearm_basic(enum kind kind)
{
	__u64 masks[] = { C_ACCESSED, C_ACCESSED | C_PRESENT };
	unsigned int mask = 0x5a;
	int fd;

	for (int i = 0; i < 2; i++) {
		struct mem m = touched(kind, &fd, mask);
		struct result r = rearm_as(m.p, m.len, m.psz, MAX_REGIONS, 0, masks[i]);

		EQ(r.map, mask);
		EQ(r.walk_end, (uintptr_t)m.p + m.len);
		check_armed(&m, 0xff);
		EQ(rearm(&m, MAX_REGIONS).n, 0);
		m.p[3 * m.psz] = 4;
		EQ(rearm(&m, MAX_REGIONS).map, 1 << 3);
		mem_check(&m, "armed again");
		EQ(rearm(&m, MAX_REGIONS).map, 0xff);
		munmap(m.p, m.len);
		close(fd);
	}
}

/* Without an output everything that matches is armed */
static void rearm_silent(enum kind kind)
{
	int fd;
	struct mem m = touched(kind, &fd, 0x0f);
	struct s_arg a = {
		.size = sizeof(a), .flags = S_RWP_REARM,
		.start = (uintptr_t)m.p, .end = (uintptr_t)m.p + m.len,
		.category_mask = C_ACCESSED,
	};

	EQ(pagemap_scan(&a), 0);
	check_armed(&m, 0xff);
	mem_check(&m, "content");
}

static void rearm_traps(enum kind kind)
{
	int fd;
	struct mem m = touched(kind, &fd, 0xff);
	struct handler h;
	struct toucher t;

	EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
	EQ(rearm(&m, MAX_REGIONS).map, 0xff);
	handler_start(&h, fd, m.psz);
	toucher_start(&t, m.p + 2 * m.psz, true);
	toucher_join(&t);
	EQ(handler_stop(&h), 1);
	EQ(h.last.pf.flags, FL_RWP | FL_WRITE);
	check_armed(&m, 0xff & ~(1 << 2));
}

/* What did not fit keeps its state, and comes with the next call */
static void rearm_full(enum kind kind)
{
	unsigned int mask = 0x55;
	int fd;
	struct mem m = touched(kind, &fd, mask);
	struct result r = rearm(&m, 1);

	EQ(r.map, 0x01);
	check_armed(&m, (0xff & ~mask) | 0x01);
	r = rearm(&m, 2);
	EQ(r.map, 0x14);
	check_armed(&m, (0xff & ~mask) | 0x15);
	r = rearm_as((void *)(uintptr_t)r.walk_end,
		     (uintptr_t)m.p + m.len - r.walk_end, m.psz, 1, 0, C_ACCESSED);
	EQ(r.pages, 1);
	check_armed(&m, 0xff);
	mem_check(&m, "content");
}

static void rearm_max_pages(enum kind kind)
{
	int fd;
	struct mem m = touched(kind, &fd, 0xff);
	struct result r = rearm_as(m.p, m.len, m.psz, MAX_REGIONS,
				   3 * m.psz / 4096, C_ACCESSED);

	EQ(r.map, 0x07);
	EQ(r.walk_end, (uintptr_t)m.p + 3 * m.psz);
	check_armed(&m, 0x07);
}

/* Huge pages of hugetlbfs are armed whole or not at all */
static void rearm_part(enum kind kind)
{
	int fd;
	struct mem m = touched(kind, &fd, 0x03);
	struct result r = rearm_as(m.p + m.psz / 2, m.psz, 4096, MAX_REGIONS, 0,
				   C_ACCESSED);

	EQ(r.pages, m.psz / 4096);
	CHECK(hot(m.p) && hot(m.p + m.psz), "a part was armed");
	mem_check(&m, "content");
}

/* Swapped out, not armed: reported, armed, and it traps when it is back */
static void rearm_swapped(enum kind kind)
{
	int fd;
	struct mem m = touched(ANON, &fd, 0xff);

	need_swap();
	for (int n = 0; n < 50 && !(cat(m.p, 4096) & C_SWAPPED); n++)
		madvise(m.p, 4 * 4096, 21);		/* MADV_PAGEOUT */
	CHECK(cat(m.p, 4096) & C_SWAPPED, "would not swap");
	EQ(rearm(&m, MAX_REGIONS).map, 0xff);
	check_armed(&m, 0xff);
	(void)*(volatile char *)m.p;
	CHECK(hot(m.p), "no trap");
	mem_check(&m, "swapped in");
}

/* A process that must not touch: the protection of the mapping stays */
static void rearm_prot(enum kind kind)
{
	int fd;
	struct mem m = touched(kind, &fd, 0xff);

	EQ(mprotect(m.p, m.len, PROT_READ), 0);
	EQ(rearm(&m, MAX_REGIONS).map, 0xff);
	check_armed(&m, 0xff);
	EQ(m.p[m.psz], 2);
	CHECK(hot(m.p + m.psz), "no trap");
	EQ(mprotect(m.p, m.len, RW), 0);
	check_armed(&m, 0xff & ~(1 << 1));
	mem_check(&m, "content");
}

static void rearm_thp(enum kind kind)
{
	char *p = thp_new(2);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	struct result r;

	need_rearm();
	EQ(reg(fd, p, 2 * HP, R_RWP), 0);
	r = rearm_as(p, HP, 4096, MAX_REGIONS, 0, C_ACCESSED);
	EQ(r.pages, 512);
	CHECK(cat(p, 4096) & C_HUGE, "split");
	for (int i = 0; i < 512; i++)
		CHECK(armed(p + i * 4096), "page %d", i);
	CHECK(hot(p + HP), "neighbour");
	EQ(p[0], 1);
	CHECK(hot(p) && hot(p + HP - 4096), "no trap");

	/* A part, because of the range; and because of the output */
	r = rearm_as(p + 16 * 4096, 16 * 4096, 4096, MAX_REGIONS, 0, C_ACCESSED);
	EQ(r.pages, 16);
	CHECK(!(cat(p, 4096) & C_HUGE), "not split");
	for (int i = 0; i < 512; i++)
		CHECK(armed(p + i * 4096) == (i >= 16 && i < 32), "page %d", i);
	r = rearm_as(p + HP, HP, 4096, MAX_REGIONS, 100, C_ACCESSED);
	EQ(r.pages, 100);
	for (int i = 0; i < 512; i++)
		CHECK(armed(p + HP + i * 4096) == (i < 100), "page %d", i);
}

/*
 * A huge page of a file is unmapped, as by UFFDIO_RWPROTECT; but not if a part of
 * it was not reported by this call, neither asked for nor fitting into the output:
 * accesses to that part would be forgotten.
 */
static void rearm_thp_shmem(enum kind kind)
{
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	char *p = thp_new_shmem();
	struct result r;

	need_rearm();
	EQ(reg(fd, p, HP, R_RWP), 0);
	r = rearm_as(p, HP, 4096, MAX_REGIONS, 100, C_ACCESSED);
	EQ(r.pages, 100);
	EQ(r.walk_end, (uintptr_t)p + 100 * 4096);
	CHECK(hot(p) && hot(p + 511 * 4096), "pages were forgotten");
	p[0] = 1;
	r = rearm_as(p + 100 * 4096, 412 * 4096, 4096, MAX_REGIONS, 0, C_ACCESSED);
	EQ(r.pages, 412);
	CHECK(hot(p), "an access between the two was forgotten");
	r = rearm_as(p, HP / 2, 4096, MAX_REGIONS, 0, C_ACCESSED);
	EQ(r.pages, 256);
	CHECK(hot(p) && hot(p + 511 * 4096), "the other half was forgotten");
	CHECK(cat(p, 4096) & C_HUGE, "not huge any more");
	r = rearm_as(p, HP, 4096, MAX_REGIONS, 0, C_ACCESSED);
	EQ(r.pages, 512);
	EQ(cat(p, 4096) & C_ACCESSED, 0);
	EQ(p[0], 1);
	CHECK(hot(p), "touched and not hot");
}

/*
 * Memory of another process, which may be one that we may only read, is armed if
 * that cannot stop it: in asynchronous mode.
 */
static void rearm_foreign(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	struct s_arg a = {
		.size = sizeof(a), .flags = S_RWP_REARM, .start = (uintptr_t)m.p,
		.end = (uintptr_t)m.p + m.len, .category_mask = C_ACCESSED,
		.return_mask = C_ACCESSED, .vec_len = 1,
	};
	struct s_region r;
	int status, up[2], down[2], fd;
	char c;
	pid_t pid;

	need_rearm();
	CHECK(!pipe(up) && !pipe(down), "%m");
	pid = fork();
	if (!pid) {
		close(up[0]);
		close(down[1]);
		fd = uffd_open(F_RWP | F_RWP_ASYNC);
		EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
		mem_fill(&m);
		EQ(reg(fd, m.p, m.len, R_RWP), 0);
		EQ(write(up[1], "s", 1), 1);		/* synchronous */
		EQ(read(down[0], &c, 1), 1);
		for (int i = 0; i < NPAGES; i++)
			CHECK(hot(m.p + i * m.psz), "page %d: armed by another", i);
		EQ(set_mode(fd, F_RWP_ASYNC, 0), 0);
		EQ(write(up[1], "a", 1), 1);
		EQ(read(down[0], &c, 1), 1);
		check_armed(&m, 0xff);
		mem_check(&m, "armed by another");
		_exit(0);
	}
	close(up[1]);
	close(down[0]);
	a.vec = (uintptr_t)&r;
	EQ(read(up[0], &c, 1), 1);
	EQ(pagemap_scan_of(pid, &a), 0);
	EQ(a.walk_end, a.end);
	EQ(write(down[1], "", 1), 1);
	CHECK(read(up[0], &c, 1) == 1, "the other process failed");
	EQ(pagemap_scan_of(pid, &a), 1);
	EQ(r.start, a.start);
	EQ(r.end, a.end);
	EQ(write(down[1], "", 1), 1);
	waitpid(pid, &status, 0);
	EQ(status, 0);
}

static const struct test tests[] = {
	{ "rearm-errno", rearm_errno },
	{ "wp-rearm", wp_rearm },
	{ "rearm-basic", rearm_basic, ALL_KINDS },
	{ "rearm-silent", rearm_silent, ALL_KINDS },
	{ "rearm-traps", rearm_traps, ALL_KINDS },
	{ "rearm-full", rearm_full, ALL_KINDS },
	{ "rearm-max-pages", rearm_max_pages, ALL_KINDS },
	{ "rearm-part", rearm_part, K(HUGETLB) | K(HUGETLB_PRIV) },
	{ "rearm-swapped", rearm_swapped },
	{ "rearm-prot", rearm_prot, ALL_KINDS },
	{ "rearm-thp", rearm_thp },
	{ "rearm-thp-shmem", rearm_thp_shmem },
	{ "rearm-foreign", rearm_foreign, ALL_KINDS },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
