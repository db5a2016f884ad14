// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that lie somewhere special: on a device (lib/test_hmm.c), in a frame
 * that is taken offline or poisoned, on the wrong NUMA node, in one huge page of
 * 1 GiB. Whatever a kernel or a machine lacks is skipped with its name.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>

/* lib/test_hmm_uapi.h */
struct hmm_cmd { __u64 addr, ptr, npages, cpages, faults; };
#define HMM_TO_DEVICE	_IOWR('H', 2, struct hmm_cmd)
#define HMM_EXCLUSIVE	_IOWR('H', 5, struct hmm_cmd)

static int hmm_open(void)
{
	char line[128], node[] = "/tmp/rwp-hmm-XXXXXX";
	FILE *f = fopen("/proc/devices", "r");
	int major = 0, fd;

	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, "HMM_DMIRROR"))
			major = atoi(line);
	if (f)
		fclose(f);
	if (!major)
		skip("no test_hmm in this kernel");
	close(mkstemp(node));
	unlink(node);
	CHECK(!mknod(node, S_IFCHR | 0600, makedev(major, 0)), "%m");
	fd = open(node, O_RDWR);
	CHECK(fd >= 0, "%s: %m", node);
	unlink(node);
	return fd;
}

static void hmm(int fd, unsigned long cmd, struct mem *m)
{
	char *mirror = calloc(NPAGES, 4096);
	struct hmm_cmd c = { (uintptr_t)m->p, (uintptr_t)mirror, NPAGES };

	CHECK(!ioctl(fd, cmd, &c), "%m");
	EQ(c.cpages, NPAGES);
	free(mirror);
}

/* All armed and on the device; each comes back armed and traps, once */
static void trap_all(int fd, struct mem *m)
{
	struct handler h;
	struct toucher t;

	for (int i = 0; i < NPAGES; i++) {
		CHECK(armed(m->p + i * 4096), "page %d is not armed", i);
		CHECK(cat(m->p + i * 4096, 4096) & C_SWAPPED, "page %d", i);
	}
	EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
	for (int write = 0; write < 2; write++) {
		toucher_start(&t, m->p + write * 4096 + 9, write);
		CHECK(toucher_blocked(&t), "went through");
		CHECK(armed(m->p + write * 4096), "not armed when it came back");
		CHECK(cat(m->p + write * 4096, 4096) & C_PRESENT, "not back");
		handler_start(&h, fd, 4096);
		toucher_join(&t);
		EQ(handler_stop(&h), 1);
		EQ(h.last.pf.flags, FL_RWP | (write ? FL_WRITE : 0));
	}
	EQ(m->p[4096 + 9], 77);
	EQ(set_mode(fd, F_RWP_ASYNC, 0), 0);
	mem_check(m, "back from the device");
	for (int i = 0; i < NPAGES; i++)
		CHECK(hot(m->p + i * 4096) && !bit57(m->p + i * 4096), "page %d", i);
}

/*
 * The device gets its access by faulting, so an armed page is not armed then;
 * what is on the device can be armed there.
 */
static void device_exclusive(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), dev = hmm_open();

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	hmm(dev, HMM_EXCLUSIVE, &m);
	for (int i = 0; i < NPAGES; i++)
		CHECK(hot(m.p + i * 4096), "the device's access to page %d", i);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	trap_all(fd, &m);
	/* Disarmed there: comes back as if nothing had been */
	hmm(dev, HMM_EXCLUSIVE, &m);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, 0), 0);
	for (int i = 0; i < NPAGES; i++)
		CHECK(!bit57(m.p + i * 4096), "page %d", i);
	mem_check(&m, "disarmed on the device");
	close(dev);
}

/* Migration to the device and back is no access */
static void device_private(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), dev = hmm_open();

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	hmm(dev, HMM_TO_DEVICE, &m);
	trap_all(fd, &m);
	hmm(dev, HMM_TO_DEVICE, &m);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	trap_all(fd, &m);
	close(dev);
}

/* A page of zeros that is armed is left where it is */
static void device_zero(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), dev = hmm_open();
	char *mirror = calloc(NPAGES, 4096);
	struct hmm_cmd c = { (uintptr_t)m.p, (uintptr_t)mirror, NPAGES };

	for (int i = 0; i < NPAGES; i++)
		(void)((volatile char *)m.p)[i * 4096];
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	/* Fails, for want of a page on the device */
	ioctl(dev, HMM_TO_DEVICE, &c);
	for (int i = 0; i < NPAGES; i++)
		CHECK(armed(m.p + i * 4096), "page %d", i);
	close(dev);
	free(mirror);
}

/* Write the physical address of the page at p to a file of memory failure */
static bool offline(void *p, const char *how)
{
	char path[128], text[32];
	__u64 e = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	CHECK(pread(fd, &e, 8, (uintptr_t)p / 4096 * 8) == 8, "%m");
	close(fd);
	e &= (1ull << 55) - 1;
	CHECK(e, "no frame number: not root?");
	snprintf(path, sizeof(path), "/sys/devices/system/memory/%s_offline_page", how);
	if (access(path, W_OK))
		skip("no memory failure handling in this kernel");
	snprintf(text, sizeof(text), "%#llx", (unsigned long long)e << 12);
	return set(path, text);
}

/* The content moves to another frame: no access, armed as before */
static void soft_offline(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	bool done = false;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	/* A page that is on its way to an LRU list is busy for a moment */
	for (int n = 0; n < 20 && !done; n++) {
		done = offline(m.p + m.psz, "soft");
		if (!done)
			usleep(50000);
	}
	CHECK(done, "could not be taken offline: %m");
	for (int i = 0; i < NPAGES; i++)
		CHECK(armed(m.p + i * m.psz), "page %d is not armed", i);
	mem_check(&m, "taken offline");
	CHECK(hot(m.p + m.psz), "no trap");
}

static sigjmp_buf on_signal;

static void jump(int sig)
{
	siglongjmp(on_signal, sig);
}

/* A poisoned page kills who touches it, whatever is done to the range */
static void hwpoison(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), sig;

	signal(SIGBUS, jump);
	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	if (!sigsetjmp(on_signal, 1))
		CHECK(offline(m.p + 4096, "hard"), "%m");
	for (volatile int round = 0; round < 3; round++) {
		sig = sigsetjmp(on_signal, 1);
		if (!sig) {
			(void)((volatile char *)m.p)[4096];
			CHECK(0, "no signal, round %d", round);
		}
		EQ(sig, SIGBUS);
		EQ(rwprotect(fd, m.p, m.len, round ? 0 : M_RWP), 0);
	}
	CHECK(!armed(m.p), "neighbour not disarmed");
	EQ(m.p[2 * 4096], 3);
	EQ(unreg(fd, m.p, m.len), 0);
	EQ(madvise(m.p, m.len, MADV_DONTNEED), 0);
}

static long vmstat(const char *name)
{
	char line[128];
	FILE *f = fopen("/proc/vmstat", "r");
	long n = -1;

	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ' ')
			n = atol(line + strlen(name));
	fclose(f);
	return n;
}

static void *idle(void *arg)
{
	pause();
	return arg;
}

/*
 * The same memory under NUMA balancing: its hints come and go on accessible
 * pages, count as accessed, and armed pages see none of it.
 */
static void numa_hints(enum kind kind)
{
	const char *knob = "/proc/sys/kernel/numa_balancing";
	size_t n = 1024;
	char *p = mmap(NULL, n * 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	pthread_t second;
	long hints = 0, faults, before;

	if (access("/sys/devices/system/node/node1", F_OK))
		skip("one NUMA node only");
	if (access(knob, W_OK))
		skip("no NUMA balancing in this kernel");
	/* Pages of a single thread that are on its node already get no hints */
	CHECK(!pthread_create(&second, NULL, idle, NULL), "thread");
	madvise(p, n * 4096, MADV_NOHUGEPAGE);
	memset(p, 1, n * 4096);
	EQ(reg(fd, p, n * 4096, R_RWP), 0);
	EQ(rwprotect(fd, p, n * 4096, M_RWP), 0);
	for (size_t i = 1; i < n; i += 2)
		p[i * 4096] = 2;
	before = vmstat("numa_pte_updates");
	faults = vmstat("numa_hint_faults");
	CHECK(set(knob, "1"), "%m");
	for (time_t end = time(NULL) + 60; time(NULL) < end; ) {
		for (size_t i = 1; i < n; i += 2)
			p[i * 4096]++;
		hints = vmstat("numa_pte_updates") - before;
		if (hints > (long)n / 2 && vmstat("numa_hint_faults") - faults > (long)n / 2)
			break;
	}
	faults = vmstat("numa_hint_faults") - faults;
	for (size_t i = 0; i < n; i++)
		CHECK(armed(p + i * 4096) == !(i & 1) && hot(p + i * 4096) == (i & 1),
		      "page %zu after %ld hints", i, hints);
	/* Arming what has a hint just now is arming */
	EQ(rwprotect(fd, p, n * 4096, M_RWP), 0);
	CHECK(set(knob, "0"), "%m");
	CHECK(hints > 0 && faults > 0, "no hints: %ld set, %ld faults", hints, faults);
	for (size_t i = 0; i < n; i++)
		CHECK(armed(p + i * 4096), "page %zu", i);
	for (size_t i = 0; i < n; i++)
		CHECK(p[i * 4096] && hot(p + i * 4096), "page %zu", i);
}

/* As many as there are, of a machine booted with hugepagesz=1G hugepages=1 */
static void gigantic(enum kind kind)
{
	char *p = gigantic_new(kind == HUGETLB ? MAP_SHARED : MAP_PRIVATE);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), buf[2];
	struct iovec from, to = { buf, sizeof(buf) };
	struct handler h;
	struct toucher t;

	EQ(reg(fd, p, GIB, R_RWP), 0);
	EQ(rwprotect(fd, p, 2 << 20, M_RWP), -EINVAL);
	p[0] = 1;
	p[GIB - 1] = 2;
	CHECK(hot(p) && !bit57(p), "populated and not hot");
	EQ(rwprotect(fd, p, GIB, M_RWP), 0);
	CHECK(armed(p) && armed(p + GIB - 4096), "not armed");
	EQ(mprotect(p, GIB, PROT_READ), 0);
	EQ(mprotect(p, GIB, RW), 0);
	CHECK(armed(p), "mprotect disarmed");
	((volatile char *)p)[GIB / 2] = 3;
	CHECK(hot(p) && !bit57(p) && p[0] == 1 && p[GIB - 1] == 2, "touched");
	/* Nobody gets at it without a fault (get_user_pages) */
	EQ(rwprotect(fd, p, GIB, M_RWP), 0);
	from = (struct iovec){ p + GIB / 2, sizeof(buf) };
	EQ(process_vm_readv(getpid(), &to, 1, &from, 1, 0), sizeof(buf));
	CHECK(*(char *)buf == 3 && hot(p), "read by the kernel, and not hot");
	EQ(rwprotect(fd, p, GIB, M_RWP), 0);
	EQ(set_mode(fd, 0, F_RWP_ASYNC), 0);
	handler_start(&h, fd, GIB);
	toucher_start(&t, p + GIB - 9, true);
	toucher_join(&t);
	EQ(handler_stop(&h), 1);
	EQ(h.last.pf.address, (uintptr_t)p);
	EQ(h.last.pf.flags, FL_RWP | FL_WRITE);
	EQ(p[GIB - 9], 77);
}

static const struct test tests[] = {
	{ "device-exclusive", device_exclusive },
	{ "device-private", device_private },
	{ "device-zero", device_zero },
	{ "soft-offline", soft_offline, ALL_KINDS },
	{ "hwpoison", hwpoison, K(ANON) | K(SHMEM) },
	{ "numa-hints", numa_hints },
	{ "gigantic", gigantic, K(HUGETLB) | K(HUGETLB_PRIV) },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
