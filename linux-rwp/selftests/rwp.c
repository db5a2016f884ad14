// SPDX-License-Identifier: GPL-2.0
/*
 * Helpers of the RWP test programs, see rwp.h. No locking: what is shared with
 * a helper thread is read after joining it.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB (21 << 26)
#endif

const char *const kind_name[NKINDS] = {
	"anon", "shmem", "shmem-private", "hugetlb", "hugetlb-private"
};

static bool in_child;

void fail(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	printf("# %s:%d: ", file, line);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

void skip(const char *fmt, ...)
{
	va_list ap;

	printf("# skip: ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
	_exit(4);
}

bool set(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, value, strlen(value)) == (ssize_t)strlen(value);

	if (fd >= 0)
		close(fd);
	return ok;
}

long get(const char *path)
{
	char buf[64] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return -1;
	if (read(fd, buf, sizeof(buf) - 1) < 0)
		buf[0] = 0;
	close(fd);
	return atol(buf);
}

void need_swap(void)
{
	char line[256];
	FILE *f = fopen("/proc/swaps", "r");
	int n = 0;

	while (f && fgets(line, sizeof(line), f))
		n++;
	if (n < 2)
		skip("no swap device");
}

void need_hugepages(long n)
{
	if (get("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages") < n)
		skip("fewer than %ld free huge pages", n);
}

struct mem mem_new(enum kind kind, int prot)
{
	struct mem m = { .psz = kind_huge(kind) ? 2 << 20 : 4096, .fd = -1 };
	int flags = kind_private(kind) ? MAP_PRIVATE : MAP_SHARED;

	m.len = NPAGES * m.psz;
	if (kind_huge(kind))
		need_hugepages(3 * NPAGES);
	if (kind == ANON) {
		flags |= MAP_ANONYMOUS;
	} else {
		m.fd = memfd_create("rwp", kind_huge(kind) ?
				    MFD_HUGETLB | MAP_HUGE_2MB : 0);
		CHECK(m.fd >= 0, "memfd_create: %m");
		CHECK(!ftruncate(m.fd, m.len), "%m");
	}
	m.p = mmap(NULL, m.len, prot, flags, m.fd, 0);
	CHECK(m.p != MAP_FAILED, "%m");
	if (!kind_huge(kind))
		madvise(m.p, m.len, MADV_NOHUGEPAGE);
	return m;
}

void mem_fill(struct mem *m)
{
	for (int i = 0; i < NPAGES; i++)
		memset(m->p + i * m->psz, i + 1, 4096);
}

void mem_check(struct mem *m, const char *where)
{
	for (int i = 0; i < NPAGES; i++)
		CHECK(m->p[i * m->psz] == i + 1 && m->p[i * m->psz + 4095] == i + 1,
		      "%s: page %d lost its content", where, i);
}

char *thp_new(size_t n)
{
	size_t sz = 2 << 20;
	char *p = mmap(NULL, (n + 1) * sz, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "%m");
	p = (char *)(((uintptr_t)p + sz - 1) & ~(sz - 1));
	if (madvise(p, n * sz, MADV_HUGEPAGE))
		skip("no transparent huge pages");
	for (size_t i = 0; i < n; i++)
		p[i * sz] = i + 1;
	if (smaps_kb(p, "AnonHugePages:") != (long)(n * sz >> 10))
		skip("no huge page could be had");
	return p;
}

char *thp_new_shmem(void)
{
	size_t sz = 2 << 20;
	int fd = memfd_create("thp", 0);
	char *p;

	if (!set("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "force"))
		skip("no transparent huge pages");
	EQ(ftruncate(fd, sz), 0);
	p = mmap(NULL, 2 * sz, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	p = (char *)(((uintptr_t)p + sz - 1) & ~(sz - 1));
	p = mmap(p, sz, RW, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(p != MAP_FAILED, "%m");
	p[0] = 1;
	set("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "never");
	if (!(cat(p, 4096) & C_HUGE))
		skip("no huge page could be had");
	return p;
}

char *gigantic_new(int flags)
{
	int fd = memfd_create("gigantic", MFD_HUGETLB | 30u << MAP_HUGE_SHIFT);
	char *p;

	if (fd < 0 ||
	    get("/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages") < 1)
		skip("no huge page of 1 GiB");
	EQ(ftruncate(fd, GIB), 0);
	p = mmap(NULL, GIB, RW, flags, fd, 0);
	CHECK(p != MAP_FAILED, "%m");
	close(fd);
	return p;
}

long minflt(void)
{
	struct rusage r;

	getrusage(RUSAGE_THREAD, &r);
	return r.ru_minflt;
}

int uffd_raw(int flags)
{
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	return fd < 0 ? -errno : fd;
}

static int call(int fd, unsigned int cmd, void *arg)
{
	return ioctl(fd, cmd, arg) ? -errno : 0;
}

int uffd_api(int fd, struct u_api *api)
{
	return call(fd, U_API, api);
}

int uffd_open(__u64 features)
{
	struct u_api api = { .api = API };
	int fd = uffd_raw(0);

	CHECK(fd >= 0, "userfaultfd: %s", strerror(-fd));
	if (uffd_api(fd, &api) || !(api.features & F_RWP))
		skip("this kernel has no RWP");
	if (features & ~api.features)
		skip("this kernel lacks features %#llx", features & ~api.features);
	close(fd);
	fd = uffd_raw(0);
	api = (struct u_api){ .api = API, .features = features };
	EQ(uffd_api(fd, &api), 0);
	return fd;
}

int reg_ioctls(int fd, void *p, size_t len, __u64 mode, __u64 *ioctls)
{
	struct u_reg r = { (uintptr_t)p, len, mode, 0 };
	int ret = call(fd, U_REGISTER, &r);

	if (ioctls)
		*ioctls = r.ioctls;
	return ret;
}

int reg(int fd, void *p, size_t len, __u64 mode)
{
	return reg_ioctls(fd, p, len, mode, NULL);
}

int unreg(int fd, void *p, size_t len)
{
	struct u_range r = { (uintptr_t)p, len };

	return call(fd, U_UNREGISTER, &r);
}

int wake(int fd, void *p, size_t len)
{
	struct u_range r = { (uintptr_t)p, len };

	return call(fd, U_WAKE, &r);
}

int rwprotect(int fd, void *p, size_t len, __u64 mode)
{
	struct u_rwp r = { (uintptr_t)p, len, mode };

	return call(fd, U_RWPROTECT, &r);
}

int set_mode(int fd, __u64 enable, __u64 disable)
{
	struct u_mode m = { enable, disable };

	return call(fd, U_SET_MODE, &m);
}

__s64 uffd_move(int fd, void *dst, void *src, size_t len)
{
	struct u_copy c = { (uintptr_t)dst, (uintptr_t)src, len, 0, 0 };
	int ret = call(fd, U_MOVE, &c);

	return ret ? ret : c.copy;
}

int pagemap_scan_of(pid_t pid, struct s_arg *a)
{
	char path[64];
	int fd, n;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	n = ioctl(fd, U_PAGEMAP_SCAN, a);
	n = n < 0 ? -errno : n;
	close(fd);
	return n;
}

int pagemap_scan(struct s_arg *a)
{
	return pagemap_scan_of(getpid(), a);
}

bool can_rearm(void)
{
	struct s_arg a = { .size = sizeof(a), .flags = S_RWP_REARM };
	int n = pagemap_scan(&a);

	CHECK(!n || n == -EINVAL, "PAGEMAP_SCAN: %s", strerror(-n));
	return !n;
}

unsigned int cat(void *p, size_t len)
{
	struct s_region r[4] = { };
	struct s_arg a = {
		.size = sizeof(a), .start = (uintptr_t)p,
		.end = (uintptr_t)p + len, .vec = (uintptr_t)r, .vec_len = 4,
		.return_mask = ~0ull >> 54 & ~(1ull << 8),
	};
	int n = pagemap_scan(&a);

	CHECK(n >= 0 || n == -EINVAL, "PAGEMAP_SCAN: %s", strerror(-n));
	CHECK(n <= 1, "the range is not of one kind");
	return n == 1 ? r[0].categories : 0;
}

bool bit57(void *p)
{
	__u64 e = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	CHECK(pread(fd, &e, 8, ((uintptr_t)p / 4096) * 8) == 8, "%m");
	close(fd);
	return e >> 57 & 1;
}

static bool smaps_find(void *p, const char *field, char *line, size_t size)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	unsigned long a, b;
	bool in = false, found = false;

	while (!found && fgets(line, size, f)) {
		if (sscanf(line, "%lx-%lx ", &a, &b) == 2 && strchr(line, '-') < strchr(line, ' '))
			in = a <= (uintptr_t)p && (uintptr_t)p < b;
		else if (in && !strncmp(line, field, strlen(field)))
			found = true;
	}
	fclose(f);
	return found;
}

bool vmflag(void *p, const char *flag)
{
	char line[512], want[8];

	snprintf(want, sizeof(want), " %s ", flag);
	return smaps_find(p, "VmFlags:", line, sizeof(line)) && strstr(line, want);
}

long smaps_kb(void *p, const char *field)
{
	char line[512];

	return smaps_find(p, field, line, sizeof(line)) ?
	       atol(line + strlen(field)) : -1;
}

static void *handler_loop(void *arg)
{
	struct handler *h = arg;
	struct pollfd fds[2] = {
		{ .fd = h->fd, .events = POLLIN },
		{ .fd = h->stop[0], .events = POLLIN },
	};
	struct u_msg msg;
	char *p;

	for (;;) {
		poll(fds, 2, -1);
		if (read(h->fd, &msg, sizeof(msg)) == sizeof(msg)) {
			if (msg.event != MSG_PAGEFAULT)
				continue;
			h->last = msg;
			h->count++;
			p = (char *)(uintptr_t)(msg.pf.address & ~(h->psz - 1));
			rwprotect(h->fd, p, h->psz, 0);
		} else if (fds[1].revents) {
			return NULL;
		}
	}
}

void handler_start(struct handler *h, int fd, size_t psz)
{
	*h = (struct handler){ .fd = fd, .psz = psz };
	CHECK(!pipe(h->stop), "%m");
	CHECK(!pthread_create(&h->thread, NULL, handler_loop, h), "thread");
}

int handler_stop(struct handler *h)
{
	CHECK(write(h->stop[1], "", 1) == 1, "%m");
	pthread_join(h->thread, NULL);
	return h->count;
}

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->tid = syscall(__NR_gettid);
	if (t->write)
		*t->p = 77;
	else
		(void)*t->p;
	t->done = 1;
	return NULL;
}

void toucher_start(struct toucher *t, void *p, bool write)
{
	*t = (struct toucher){ .p = p, .write = write };
	CHECK(!pthread_create(&t->thread, NULL, touch, t), "thread");
}

bool toucher_blocked(struct toucher *t)
{
	usleep(200000);
	return !t->done;
}

void toucher_join(struct toucher *t)
{
	pthread_join(t->thread, NULL);
}

static int run_one(const struct test *t, enum kind kind, int *failed, int *skipped,
		   int nr)
{
	char name[128];
	int status = 0;
	pid_t pid;

	snprintf(name, sizeof(name), "%s%s%s", t->name, t->kinds ? " " : "",
		 t->kinds ? kind_name[kind] : "");
	fflush(stdout);
	pid = fork();
	if (!pid) {
		in_child = true;
		alarm(getenv("RWP_ALARM") ? atoi(getenv("RWP_ALARM")) : 120);
		t->fn(kind);
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
		printf("ok %d %s\n", nr, name);
	} else if (WIFEXITED(status) && WEXITSTATUS(status) == 4) {
		printf("ok %d %s # SKIP see above\n", nr, name);
		++*skipped;
	} else {
		if (WIFSIGNALED(status))
			printf("# killed by signal %d%s\n", WTERMSIG(status),
			       WTERMSIG(status) == SIGALRM ? ", it hung" : "");
		printf("not ok %d %s\n", nr, name);
		++*failed;
	}
	return 0;
}

int run_tests(const struct test *tests, int argc, char **argv)
{
	int n = 0, failed = 0, skipped = 0;

	for (int pass = 0; pass < 2; pass++) {
		int nr = 0;

		for (const struct test *t = tests; t->name; t++) {
			if (argc > 1 && !strstr(t->name, argv[1]))
				continue;
			for (int k = 0; k < (t->kinds ? NKINDS : 1); k++) {
				if (t->kinds && !(t->kinds & K(k)))
					continue;
				nr++;
				if (pass)
					run_one(t, k, &failed, &skipped, nr);
			}
		}
		if (!pass) {
			n = nr;
			printf("TAP version 13\n1..%d\n", n);
		}
	}
	printf("# %d passed, %d failed, %d skipped\n", n - failed - skipped,
	       failed, skipped);
	return failed != 0;
}
