// SPDX-License-Identifier: GPL-2.0
/*
 * What arming, scanning and being touched cost, beside the nearest relatives:
 * UFFDIO_WRITEPROTECT with WP_ASYNC, and mprotect(PROT_NONE) with a SIGSEGV
 * handler; and a cycle of a monitor with and without PM_SCAN_RWP_REARM. Only
 * ratios of lines of one run mean anything.
 *
 *	bench [MEBIBYTES | plain]
 *
 * Each figure is the best of several rounds. "plain", or a kernel without RWP,
 * leaves the lines that need none: base page faults and fork.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>

#define ROUNDS 5

static size_t len;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static char *buffer(bool huge)
{
	size_t hp = 2 << 20;
	char *p = mmap(NULL, len + hp, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	p = (char *)(((uintptr_t)p + hp - 1) & ~(hp - 1));
	madvise(p, len, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t i = 0; i < len; i += 4096)
		p[i] = 1;
	return p;
}

static void do_scan(char *p, __u64 what)
{
	static struct s_region r[4096];
	struct s_arg a = {
		.size = sizeof(a), .start = (uintptr_t)p, .vec = (uintptr_t)r,
		.vec_len = 4096, .end = (uintptr_t)p + len,
		.category_mask = what, .return_mask = what,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY);

	do {
		if (ioctl(fd, U_PAGEMAP_SCAN, &a) < 0)
			break;
		a.start = a.walk_end;
	} while (a.walk_end < (uintptr_t)p + len);
	close(fd);
}

static double min_(double a, double b)
{
	return !a || b < a ? b : a;
}

/* One cycle: find what was touched, and arm it. A step, or a call for each run */
static double cycle(int fd, char *p, bool rearm)
{
	static struct s_region r[512];
	struct s_arg a = {
		.size = sizeof(a), .flags = rearm ? S_RWP_REARM : 0,
		.start = (uintptr_t)p, .end = (uintptr_t)p + len,
		.vec = (uintptr_t)r, .vec_len = 512,
		.category_mask = C_ACCESSED, .return_mask = C_ACCESSED,
	};
	int pm = open("/proc/self/pagemap", O_RDONLY);
	double t = now();

	do {
		int n = ioctl(pm, U_PAGEMAP_SCAN, &a);

		CHECK(n >= 0, "%m");
		for (int i = 0; i < n && !rearm; i++)
			EQ(rwprotect(fd, (void *)(uintptr_t)r[i].start,
				     r[i].end - r[i].start, M_RWP), 0);
		a.start = a.walk_end;
	} while (a.start < a.end);
	t = now() - t;
	close(pm);
	return t;
}

static void cycles(int fd, char *p)
{
	int every[] = { 1, 2, 16, 256, 0 };

	for (int i = 0; i < 5 && can_rearm(); i++) {
		double took[2] = { };

		for (int n = 0; n < 2 * ROUNDS; n++) {
			for (size_t o = 0; every[i] && o < len; o += every[i] * 4096ul)
				((volatile char *)p)[o] = 4;
			took[n % 2] = min_(took[n % 2], cycle(fd, p, n % 2));
		}
		printf("cycle, 1 of %d touched (0: none): SCAN, RWPROTECT %9.0f us, REARM %9.0f us, ratio %.2f\n",
		       every[i], took[0] / 1e3, took[1] / 1e3, took[1] / took[0]);
		fflush(stdout);
	}
}

static volatile char *sig_page;

static void on_segv(int sig, siginfo_t *si, void *ctx)
{
	char *p = (char *)((uintptr_t)si->si_addr & ~4095ul);

	sig_page = p;
	mprotect(p, 4096, RW);
}

struct row {
	double arm_hot, arm_cold, scan, touch;
};

static struct row measure(int fd, char *p, unsigned int cmd, __u64 what, size_t step)
{
	struct u_rwp arm = { (uintptr_t)p, len, 1 };
	size_t part = len / 16;
	struct row r = { };
	double t;

	for (int i = 0; i < ROUNDS; i++) {
		for (size_t o = 0; o < len; o += step)
			((volatile char *)p)[o] = 2;
		t = now();
		CHECK(!ioctl(fd, cmd, &arm), "%m");
		r.arm_hot = min_(r.arm_hot, now() - t);
		t = now();
		CHECK(!ioctl(fd, cmd, &arm), "%m");
		r.arm_cold = min_(r.arm_cold, now() - t);
		for (size_t o = 0; o < len; o += 2 * step)
			((volatile char *)p)[o] = 2;
		t = now();
		do_scan(p, what);
		r.scan = min_(r.scan, now() - t);
		CHECK(!ioctl(fd, cmd, &arm), "%m");
		t = now();
		for (size_t o = 0; o < part; o += step)
			((volatile char *)p)[o] = 3;
		r.touch = min_(r.touch, (now() - t) / (part / step));
	}
	return r;
}

static void print(const char *name, struct row r)
{
	printf("%-34s %12.0f %12.0f %12.0f %10.0f\n", name, r.arm_hot / 1e3,
	       r.arm_cold / 1e3, r.scan / 1e3, r.touch);
	fflush(stdout);
}

static void mprotect_row(char *p)
{
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO };
	size_t part = 16 << 20;
	struct row r = { };
	double t;

	sigaction(SIGSEGV, &sa, NULL);
	for (int i = 0; i < ROUNDS; i++) {
		t = now();
		mprotect(p, len, PROT_NONE);
		r.arm_hot = min_(r.arm_hot, now() - t);
		t = now();
		/* Every second page, so that VMAs stay separate, as they do */
		for (size_t o = 0; o < part; o += 8192)
			((volatile char *)p)[o] = 3;
		r.touch = min_(r.touch, (now() - t) / (part / 8192));
		mprotect(p, len, RW);
	}
	print("mprotect(PROT_NONE), SIGSEGV, 4K", r);
}

static void plain(void)
{
	double fault = 0, forked = 0, t;

	for (int i = 0; i < 2 * ROUNDS; i++) {
		size_t sz = 64 << 20;
		char *p = mmap(NULL, sz, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		madvise(p, sz, MADV_NOHUGEPAGE);
		t = now();
		for (size_t o = 0; o < sz; o += 4096)
			p[o] = 1;
		fault = min_(fault, (now() - t) / (sz / 4096));
		t = now();
		pid_t pid = fork();
		if (!pid)
			_exit(0);
		forked = min_(forked, now() - t);
		waitpid(pid, NULL, 0);
		munmap(p, sz);
	}
	printf("page fault, anonymous 4K: %.0f ns; fork with 64 MiB: %.0f us\n",
	       fault, forked / 1e3);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct u_api api = { .api = API };
	int fd = uffd_raw(0);
	struct row rwp, wp;
	char *p;

	len = (argc > 1 ? atoi(argv[1]) : 1024) * (1ul << 20);
	plain();
	if (argc > 1 && !strcmp(argv[1], "plain"))
		return 0;
	if (fd < 0 || uffd_api(fd, &api) || !(api.features & F_RWP))
		return 0;
	close(fd);
	printf("%-34s %12s %12s %12s %10s\n", "", "arm hot us", "arm cold us",
	       "scan us", "touch ns");
	for (int huge = 0; huge < 2; huge++) {
		size_t step = huge ? 2 << 20 : 4096;

		p = buffer(huge);
		fd = uffd_open(F_WP_ASYNC);
		EQ(reg(fd, p, len, R_WP), 0);
		wp = measure(fd, p, U_WRITEPROTECT, C_WRITTEN, step);
		print(huge ? "WRITEPROTECT, WP_ASYNC, THP" :
		      "WRITEPROTECT, WP_ASYNC, 4K", wp);
		close(fd);
		munmap(p, len);
		p = buffer(huge);
		fd = uffd_open(F_RWP | F_RWP_ASYNC);
		EQ(reg(fd, p, len, R_RWP), 0);
		rwp = measure(fd, p, U_RWPROTECT, C_ACCESSED, step);
		print(huge ? "RWPROTECT, RWP_ASYNC, THP" :
		      "RWPROTECT, RWP_ASYNC, 4K", rwp);
		if (!huge)
			cycles(fd, p);
		close(fd);
		printf("ratio RWP/WP %s: arm %.2f scan %.2f touch %.2f\n",
		       huge ? "THP" : "4K", rwp.arm_hot / wp.arm_hot,
		       rwp.scan / wp.scan, rwp.touch / wp.touch);
		if (!huge)
			mprotect_row(p);
		munmap(p, len);
	}
	return 0;
}
