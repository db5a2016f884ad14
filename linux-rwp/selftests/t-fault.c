// SPDX-License-Identifier: GPL-2.0
/*
 * Faults and scans: what an access to armed memory does in either mode, who is
 * woken when, and what PAGEMAP_SCAN says before and after.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>
#include <setjmp.h>
#include <sys/uio.h>
#include <time.h>

static void sync_fault(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	struct handler h;
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	for (int write = 0; write < 2; write++) {
		char *p = m.p + (2 + write) * m.psz + 4096 - 8;

		handler_start(&h, fd, m.psz);
		toucher_start(&t, p, write);
		toucher_join(&t);
		EQ(handler_stop(&h), 1);
		EQ(h.last.pf.flags, FL_RWP | (write ? FL_WRITE : 0));
		EQ(h.last.pf.address, (uintptr_t)p & ~(m.psz - 1));
		EQ(h.last.pf.ptid, 0);
	}
	CHECK(armed(m.p) && hot(m.p + 2 * m.psz), "wrong page resolved");
	EQ(m.p[3 * m.psz + 4096 - 8], 77);
}

static void sync_exact(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_EXACT | F_THREAD_ID);
	struct handler h;
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	handler_start(&h, fd, 4096);
	toucher_start(&t, m.p + 4099, true);
	toucher_join(&t);
	EQ(handler_stop(&h), 1);
	EQ(h.last.pf.address, (uintptr_t)m.p + 4099);
	EQ(h.last.pf.ptid, t.tid);
}

static sigjmp_buf on_signal;

static void jump(int sig)
{
	siglongjmp(on_signal, sig);
}

static void sync_sigbus(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_SIGBUS), sig;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	signal(SIGBUS, jump);
	sig = sigsetjmp(on_signal, 1);
	if (!sig) {
		(void)*(volatile char *)m.p;
		CHECK(0, "no signal");
	}
	EQ(sig, SIGBUS);
	CHECK(armed(m.p), "disarmed all the same");
}

static void sync_kernel(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	struct u_api api = { .api = API, .features = F_RWP };
	int fd = uffd_open(F_RWP), user = uffd_raw(1), pipefd[2];
	struct handler h;

	mem_fill(&m);
	CHECK(!pipe(pipefd), "%m");
	CHECK(write(pipefd[1], "xy", 2) == 2, "%m");
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	handler_start(&h, fd, m.psz);
	EQ(read(pipefd[0], m.p, 1), 1);
	EQ(handler_stop(&h), 1);
	EQ(h.last.pf.flags, FL_RWP | FL_WRITE);
	EQ(m.p[0], 'x');
	EQ(unreg(fd, m.p, m.len), 0);

	/* A descriptor for faults from user mode only: the kernel's fail ... */
	EQ(uffd_api(user, &api), 0);
	EQ(reg(user, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(user, m.p, m.len, M_RWP), 0);
	EQ(read(pipefd[0], m.p, 1) < 0 ? -errno : 0, -EFAULT);
	/* ... unless they need nobody */
	EQ(set_mode(user, F_RWP_ASYNC, 0), 0);
	EQ(read(pipefd[0], m.p, 1), 1);
	EQ(m.p[0], 'y');
}

static void wake_explicit(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	toucher_start(&t, m.p, true);
	CHECK(toucher_blocked(&t), "went through");
	EQ(wake(fd, m.p, m.psz), 0);		/* still armed: traps again */
	CHECK(toucher_blocked(&t), "went through");
	EQ(rwprotect(fd, m.p, m.len, M_DONTWAKE), 0);
	CHECK(toucher_blocked(&t), "woken");
	EQ(wake(fd, m.p, m.psz), 0);
	toucher_join(&t);
}

static void unregister_wakes(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	toucher_start(&t, m.p + m.psz, true);
	CHECK(toucher_blocked(&t), "went through");
	EQ(unreg(fd, m.p, m.len), 0);
	toucher_join(&t);
	for (int i = 0; i < NPAGES; i++)
		CHECK(!bit57(m.p + i * m.psz), "page %d", i);
	EQ(m.p[2 * m.psz], 3);
}

struct late_toucher {
	pthread_t thread;
	volatile char *p;
	int delay_us;
};

static volatile bool touch_now;

static void *touch_late(void *arg)
{
	struct late_toucher *t = arg;

	while (!touch_now)
		;
	usleep(t->delay_us);
	*t->p = 77;
	return NULL;
}

/* Who comes while a large range is being disarmed does not wait for ever */
static void unregister_wakes_late(enum kind kind)
{
	const size_t len = 64 << 20;
	struct late_toucher t[32];
	int fd = uffd_open(F_RWP);
	char *p;

	p = mmap(NULL, len, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "%m");
	madvise(p, len, MADV_NOHUGEPAGE);
	memset(p, 1, len);
	EQ(reg(fd, p, len, R_RWP), 0);
	EQ(rwprotect(fd, p, len, M_RWP), 0);
	for (int i = 0; i < 32; i++) {
		/* At the end, which is disarmed last */
		t[i].p = p + len - (i + 1) * 4096;
		t[i].delay_us = i * 500;
		CHECK(!pthread_create(&t[i].thread, NULL, touch_late, &t[i]), "%m");
	}
	touch_now = true;
	EQ(unreg(fd, p, len), 0);
	for (int i = 0; i < 32; i++)
		pthread_join(t[i].thread, NULL);
}

/* The range would split the last huge page: refused, and nothing has changed */
static void unregister_split(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(unreg(fd, m.p, m.len - 4096), -EINVAL);
	for (int i = 0; i < NPAGES; i++)
		CHECK(armed(m.p + i * m.psz), "page %d", i);
}

/* A hole wakes nobody; woken, the access finds a page of zeros */
static void punch_wakes_not(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	toucher_start(&t, m.p + m.psz, true);
	CHECK(toucher_blocked(&t), "went through");
	EQ(fallocate(m.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, m.psz,
		     m.psz), 0);
	CHECK(toucher_blocked(&t), "woken");
	EQ(wake(fd, m.p + m.psz, m.psz), 0);
	toucher_join(&t);
	EQ(m.p[m.psz], 77);
	EQ(m.p[m.psz + 1], 0);
	CHECK(hot(m.p + m.psz) && armed(m.p), "wrong state");
}

/* Fetching an instruction is an access, and a read */
static void sync_exec(enum kind kind)
{
	struct mem m = mem_new(ANON, RW | PROT_EXEC);
	int fd = uffd_open(F_RWP);
	struct handler h;

	m.p[0] = (char)0xc3;		/* ret */
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	handler_start(&h, fd, 4096);
	((void (*)(void))m.p)();
	EQ(handler_stop(&h), 1);
	EQ(h.last.pf.flags, FL_RWP);
	CHECK(hot(m.p), "executed and not hot");
}

static void close_wakes(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	toucher_start(&t, m.p + m.psz, false);
	CHECK(toucher_blocked(&t), "went through");
	close(fd);
	toucher_join(&t);
	mem_check(&m, "close");
	CHECK(!bit57(m.p) && !vmflag(m.p, "ur"), "left armed");
}

static void toggle_wakes(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	struct toucher t;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	toucher_start(&t, m.p, true);
	CHECK(toucher_blocked(&t), "went through");
	EQ(set_mode(fd, F_RWP_ASYNC, 0), 0);
	toucher_join(&t);
	CHECK(hot(m.p) && armed(m.p + m.psz), "not resolved alone");
	EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
	toucher_start(&t, m.p + m.psz, false);
	CHECK(toucher_blocked(&t), "the old mode stayed");
	EQ(unreg(fd, m.p, m.len), 0);
	toucher_join(&t);
}

static void prot_none(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), sig;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(mprotect(m.p, m.len, PROT_READ), 0);
	CHECK(armed(m.p), "mprotect(PROT_READ) disarmed");
	EQ(mprotect(m.p, m.len, PROT_NONE), 0);
	CHECK(armed(m.p), "mprotect(PROT_NONE) disarmed");
	signal(SIGSEGV, jump);
	sig = sigsetjmp(on_signal, 1);
	if (!sig) {
		(void)*(volatile char *)m.p;
		CHECK(0, "no signal");
	}
	EQ(sig, SIGSEGV);
	EQ(mprotect(m.p, m.len, RW), 0);
	CHECK(armed(m.p), "mprotect(PROT_WRITE) disarmed");
	mem_check(&m, "mprotect");
	CHECK(hot(m.p), "no trap after mprotect");
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(mprotect(m.p, m.len, PROT_NONE), 0);
	EQ(unreg(fd, m.p, m.len), 0);
	EQ(mprotect(m.p, m.len, RW), 0);
	CHECK(!bit57(m.p), "left armed");
	mem_check(&m, "unregister");
}

static void prot_read(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	mem_fill(&m);
	EQ(mprotect(m.p, m.len, PROT_READ), 0);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	mem_check(&m, "fault");
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, 0), 0);	/* dmesg tells, H4 */
	mem_check(&m, "disarm");
}

static void async_one_fault(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	long n;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	n = minflt();
	for (int i = 0; i < NPAGES; i++)
		((volatile char *)m.p)[i * m.psz] = 9;
	n = minflt() - n;
	CHECK(n <= NPAGES, "%ld faults for %d pages", n, NPAGES);
	CHECK(n >= NPAGES, "%ld faults for %d pages: not armed", n, NPAGES);
}

static void scan_matrix(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	unsigned int f = kind == SHMEM || kind == HUGETLB ? C_FILE : 0;
	unsigned int h = kind_huge(kind) ? C_HUGE : 0;
	const unsigned int mask = ~(C_SOFT_DIRTY | C_HUGE);
	char *p = m.p + m.psz;

	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(cat(p, m.psz) & mask, 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(cat(p, m.psz) & mask, 0);		/* arming populates nothing */
	mem_fill(&m);
	EQ(cat(p, m.psz) & ~C_SOFT_DIRTY, C_PRESENT | C_ACCESSED | f | h);
	CHECK(!bit57(p), "bit 57 of an accessed page");
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(cat(p, m.psz) & ~C_SOFT_DIRTY, C_PRESENT | f | h);
	CHECK(bit57(p), "no bit 57 of an armed page");
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);	/* again: no change */
	EQ(cat(p, m.psz) & ~C_SOFT_DIRTY, C_PRESENT | f | h);
	(void)*(volatile char *)p;
	EQ(cat(p, m.psz) & ~C_SOFT_DIRTY, C_PRESENT | C_ACCESSED | f | h);
	CHECK(armed(m.p) && armed(m.p + 2 * m.psz), "neighbours");
	mem_check(&m, "scan");
}

static int scan(struct mem *m, __u64 flags, __u64 mask)
{
	struct s_region r[NPAGES];
	struct s_arg a = {
		.size = sizeof(a), .flags = flags, .start = (uintptr_t)m->p,
		.end = (uintptr_t)m->p + m->len, .vec = (uintptr_t)r,
		.vec_len = NPAGES, .category_mask = mask, .return_mask = mask,
	};

	return pagemap_scan(&a);
}

static void scan_wp(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC | F_WP_ASYNC);

	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(scan(&m, 0, C_WRITTEN), 0);		/* nothing there at all */
	mem_fill(&m);
	munmap(m.p, m.psz);
	EQ(madvise(m.p + m.psz, m.psz, MADV_DONTNEED), 0);
	EQ(scan(&m, 0, C_WRITTEN), 0);		/* none, present */
	EQ(rwprotect(fd, m.p + m.psz, m.len - m.psz, M_RWP), 0);
	EQ(scan(&m, 0, C_WRITTEN), 0);		/* armed */
	EQ(scan(&m, S_CHECK_WPASYNC, C_PRESENT), -EPERM);
	EQ(rwprotect(fd, m.p + m.psz, m.len - m.psz, 0), 0);
	EQ(scan(&m, S_WP_MATCHING, C_PRESENT), 0);
	for (int i = 2; i < NPAGES; i++)
		CHECK(!bit57(m.p + i * m.psz), "page %d", i);
}

static unsigned int scan_pages(struct mem *m, __u64 mask, __u64 return_mask)
{
	struct s_region r[NPAGES];
	struct s_arg a = {
		.size = sizeof(a), .start = (uintptr_t)m->p,
		.end = (uintptr_t)m->p + m->len, .vec = (uintptr_t)r,
		.vec_len = NPAGES, .category_mask = mask, .return_mask = return_mask,
	};
	int n = pagemap_scan(&a);
	unsigned int pages = 0;

	CHECK(n >= 0, "%s", strerror(-n));
	for (int i = 0; i < n; i++)
		for (__u64 p = r[i].start; p < r[i].end; p += m->psz)
			pages |= 1u << (p - (uintptr_t)m->p) / m->psz;
	return pages;
}

/*
 * The scan that asks for nothing but what was accessed goes a way of its own.
 * It has to say the same of pages that are: not there, accessed, armed, swapped
 * out accessed, swapped out armed.
 */
static void scan_ways(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	unsigned int hot_pages = 0xea;

	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	for (int i = 1; i < NPAGES; i++)
		memset(m.p + i * m.psz, i, 4096);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	for (int i = 1; i < NPAGES; i++)
		if (hot_pages & 1u << i)
			m.p[i * m.psz] = 1;
	if (kind == ANON)
		for (int n = 0; n < 50 && !(cat(m.p + 4 * m.psz, m.psz) & C_SWAPPED); n++)
			madvise(m.p + 3 * m.psz, 3 * m.psz, 21);	/* MADV_PAGEOUT */
	EQ(scan_pages(&m, C_ACCESSED, C_ACCESSED), hot_pages);
	EQ(scan_pages(&m, C_ACCESSED, C_ACCESSED | C_PRESENT | C_SWAPPED), hot_pages);
}

static void fault_around(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), n = 0;
	char buf[4096] = "x";

	for (int i = 0; i < NPAGES; i++)
		CHECK(pwrite(m.fd, buf, 4096, i * 4096) == 4096, "%m");
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	(void)*(volatile char *)m.p;
	for (int i = 0; i < NPAGES; i++)
		n += hot(m.p + i * 4096);
	EQ(n, 1);
}

static void zeropage(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	for (int i = 0; i < NPAGES; i++)
		(void)((volatile char *)m.p)[i * 4096];
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	CHECK(armed(m.p) && cat(m.p, 4096) & C_PFNZERO, "zero page not armed");
	mem_fill(&m);
	mem_check(&m, "write to armed zero pages");
	CHECK(hot(m.p), "written and not hot");
}

static void gup(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), pipefd[2];
	struct iovec v = { m.p, 100 }, to;
	char buf[100];

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	CHECK(!pipe(pipefd), "%m");
	EQ(vmsplice(pipefd[1], &v, 1, 0), 100);
	CHECK(hot(m.p), "vmsplice unseen");
	v.iov_base = m.p + m.psz;
	to = (struct iovec){ buf, 100 };
	EQ(process_vm_readv(getpid(), &to, 1, &v, 1, 0), 100);
	EQ(buf[0], 2);
	CHECK(hot(m.p + m.psz), "process_vm_readv unseen");
	CHECK(armed(m.p + 2 * m.psz), "neighbour");
}

static void stray(int sig)
{
	static const char text[] = "# SIGBUS: a fault of a page that is there\n";

	(void)!write(1, text, sizeof(text) - 1);
	_exit(1);
}

static volatile bool armed_enough;

static void *touch_on(void *p)
{
	while (!armed_enough)
		(void)*(volatile char *)p;
	return NULL;
}

/*
 * Arming clears an entry for an instant, and so may other changes. Whoever comes
 * then must not be told that the page is missing from its page table.
 */
static void arming_clears(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC | F_MINOR | F_SIGBUS);
	time_t end = time(NULL) + 10;
	pthread_t t[2];

	mem_fill(&m);
	signal(SIGBUS, stray);
	EQ(reg(fd, m.p, m.len, R_RWP | R_MINOR), 0);
	for (int i = 0; i < 2; i++)
		CHECK(!pthread_create(&t[i], NULL, touch_on, m.p), "thread");
	for (int i = 0; i < 100000 && time(NULL) < end; i++)
		EQ(rwprotect(fd, m.p, m.psz, M_RWP), 0);
	armed_enough = true;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
}

static void gup_force(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), mem;
	char c = 42;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(mprotect(m.p, m.len, PROT_NONE), 0);
	mem = open("/proc/self/mem", O_RDWR);
	EQ(pread(mem, &c, 1, (off_t)(uintptr_t)m.p + 4096), 1);
	EQ(c, 2);
	c = 42;
	EQ(pwrite(mem, &c, 1, (off_t)(uintptr_t)m.p), 1);
	CHECK(bit57(m.p), "a forced write disarmed");
	EQ(mprotect(m.p, m.len, RW), 0);
	EQ(m.p[0], 42);
	CHECK(hot(m.p) && armed(m.p + 4096), "wrong state afterwards");
}

static const struct test tests[] = {
	{ "sync-fault", sync_fault, ALL_KINDS },
	{ "sync-exact", sync_exact },
	{ "sync-exec", sync_exec },
	{ "sync-sigbus", sync_sigbus, ALL_KINDS },
	{ "sync-kernel", sync_kernel, ALL_KINDS },
	{ "wake-explicit", wake_explicit, ALL_KINDS },
	{ "unregister-wakes", unregister_wakes, ALL_KINDS },
	{ "unregister-wakes-late", unregister_wakes_late },
	{ "unregister-split", unregister_split, K(HUGETLB) | K(HUGETLB_PRIV) },
	{ "punch-wakes-not", punch_wakes_not, K(SHMEM) | K(HUGETLB) },
	{ "close-wakes", close_wakes, ALL_KINDS },
	{ "toggle-wakes", toggle_wakes, ALL_KINDS },
	{ "prot-none", prot_none, ALL_KINDS },
	{ "prot-read", prot_read, ALL_KINDS },
	{ "async-one-fault", async_one_fault,
	  K(ANON) | K(SHMEM) | K(SHMEM_PRIV) | K(HUGETLB) },
	{ "scan-matrix", scan_matrix, ALL_KINDS },
	{ "scan-ways", scan_ways, ALL_KINDS },
	{ "scan-wp", scan_wp, ALL_KINDS },
	{ "fault-around", fault_around, K(SHMEM) | K(SHMEM_PRIV) },
	{ "zeropage", zeropage },
	{ "arming-clears", arming_clears, K(SHMEM) | K(SHMEM_PRIV) | K(HUGETLB) },
	{ "gup", gup, ALL_KINDS },
	{ "gup-force", gup_force },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
