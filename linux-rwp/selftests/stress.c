// SPDX-License-Identifier: GPL-2.0
/*
 * Everything at once: threads that write and check, one that arms, one that
 * toggles the mode, one that evicts and brings back, fork, mremap, swap
 * pressure. The only question is whether a write was lost.
 *
 *	stress SECONDS [MEBIBYTES]
 *
 * Each page belongs to one toucher thread, which keeps its own count of what it
 * wrote there (in memory that is not tracked) and compares before each write.
 * The evictor takes what PAGEMAP_SCAN reports as not accessed while the context
 * is synchronous, moves it to a staging area with UFFDIO_MOVE, keeps a checksum,
 * and moves it back when it is touched or after a while. The registration is
 * RWP|MISSING, so that an access to an evicted page raises MISSING.
 *
 * Locking: evicted[] (which page is where) is protected by evict_lock; faults
 * are answered by one thread, which takes it too.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>

#define TOUCHERS 8

static char *mem, *staging, *other;
static size_t npages;
static int fd;
static uint32_t *expected;		/* by page, its toucher's */
static unsigned char *evicted;		/* by page, evict_lock */
static uint32_t *sum;			/* of an evicted page, evict_lock */
static pthread_mutex_t evict_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool stop, handler_end;
static atomic_ulong touches, evictions, fetches, faults, forks, moves, toggles,
		    busy;

static void lost(const char *what, size_t page, uint32_t is, uint32_t should)
{
	printf("FAILED: %s: page %zu holds %u, should hold %u\n", what, page, is,
	       should);
	fflush(stdout);
	_exit(1);
}

static uint32_t checksum(const char *p)
{
	uint32_t s = 1;

	for (int i = 0; i < 4096; i += 4)
		s = s * 31 + *(const uint32_t *)(p + i);
	return s;
}

static void *toucher_thread(void *arg)
{
	size_t me = (size_t)arg;
	unsigned int seed = me + 1;

	while (!stop) {
		size_t page = rand_r(&seed) % (npages / TOUCHERS) * TOUCHERS + me;
		volatile uint32_t *p = (uint32_t *)(mem + page * 4096);

		/* A hot quarter, and a rest that gets cold */
		if (rand_r(&seed) % 8)
			page = page / 4 / TOUCHERS * TOUCHERS + me,
			p = (uint32_t *)(mem + page * 4096);
		if (p[0] != expected[page] || p[1000] != expected[page])
			lost("memory", page, p[0], expected[page]);
		expected[page]++;
		p[0] = expected[page];
		p[1000] = expected[page];
		touches++;
		if (!(touches & 63))
			usleep(200);
	}
	return NULL;
}

/* By the call and by a scan in turns; a kernel may not know the latter */
static void *arm_thread(void *arg)
{
	struct s_arg a = {
		.size = sizeof(a), .flags = S_RWP_REARM, .start = (uintptr_t)mem,
		.end = (uintptr_t)mem + npages * 4096, .category_mask = C_ACCESSED,
	};
	int pm = open("/proc/self/pagemap", O_RDONLY);

	for (int n = 0; !stop; n++) {
		if (n % 2)
			rwprotect(fd, mem, npages * 4096, M_RWP);
		else
			ioctl(pm, U_PAGEMAP_SCAN, &a);
		usleep(30000);
	}
	close(pm);
	return NULL;
}

/* evict_lock held. Back to where it came from; armed there, so it traps. */
static void fetch(size_t page)
{
	__s64 n;

	if (!evicted[page])
		return;
	if (checksum(staging + page * 4096) != sum[page])
		lost("staging", page, 0, 0);
	for (;;) {
		char *from = staging + page * 4096;

		n = uffd_move(fd, mem + page * 4096, from, 4096);
		/*
		 * If it was moved while it was being written to swap, and read
		 * right then, it does not count as ours alone until we write.
		 */
		if (n == -EBUSY) {
			*(volatile char *)from = *from;
			busy++;
		} else if (n != -EAGAIN) {
			break;
		}
	}
	if (n != 4096)
		lost("move back", page, -n, 0);
	evicted[page] = 0;
	fetches++;
}

static void *fault_thread(void *arg)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };
	struct u_msg msg;

	while (!handler_end) {
		poll(&pfd, 1, 100);
		if (read(fd, &msg, sizeof(msg)) != sizeof(msg) ||
		    msg.event != MSG_PAGEFAULT)
			continue;
		size_t page = (msg.pf.address - (uintptr_t)mem) / 4096;

		if (page >= npages)
			lost("a fault outside", page, 0, 0);
		faults++;
		pthread_mutex_lock(&evict_lock);
		fetch(page);
		while (rwprotect(fd, mem + page * 4096, 4096, 0) == -EAGAIN)
			;
		wake(fd, mem + page * 4096, 4096);
		pthread_mutex_unlock(&evict_lock);
	}
	return NULL;
}

static void evict_some(unsigned int *seed)
{
	struct s_region r[32];
	size_t first = rand_r(seed) % (npages - 256);
	struct s_arg a = {
		.size = sizeof(a), .start = (uintptr_t)mem + first * 4096,
		.end = (uintptr_t)mem + (first + 256) * 4096,
		.vec = (uintptr_t)r, .vec_len = 32,
		.category_inverted = C_ACCESSED, .category_mask = C_ACCESSED | C_PRESENT,
		.return_mask = C_PRESENT,
	};
	int pm = open("/proc/self/pagemap", O_RDONLY);
	int n = ioctl(pm, U_PAGEMAP_SCAN, &a);

	close(pm);
	for (int i = 0; i < n; i++)
		for (__u64 p = r[i].start; p < r[i].end; p += 4096) {
			size_t page = (p - (uintptr_t)mem) / 4096;

			pthread_mutex_lock(&evict_lock);
			/* UFFDIO_MOVE is atomic: what it takes is the latest */
			if (!evicted[page] &&
			    uffd_move(fd, staging + page * 4096, (void *)p, 4096) == 4096) {
				sum[page] = checksum(staging + page * 4096);
				evicted[page] = 1;
				evictions++;
			}
			pthread_mutex_unlock(&evict_lock);
		}
}

static void *evict_thread(void *arg)
{
	unsigned int seed = 77;

	while (!stop) {
		set_mode(fd, 0, F_RWP_ASYNC);
		toggles++;
		evict_some(&seed);
		set_mode(fd, F_RWP_ASYNC, 0);
		usleep(20000);
		pthread_mutex_lock(&evict_lock);
		for (size_t i = 0; i < npages; i++)
			if (evicted[i] && !(rand_r(&seed) % 16))
				fetch(i);
		pthread_mutex_unlock(&evict_lock);
	}
	return NULL;
}

static void *toggle_thread(void *arg)
{
	unsigned int seed = 5;

	while (!stop) {
		set_mode(fd, F_RWP_ASYNC, 0);
		usleep(rand_r(&seed) % 5000);
		set_mode(fd, 0, F_RWP_ASYNC);
		usleep(rand_r(&seed) % 5000);
		toggles++;
	}
	return NULL;
}

/* Children that read what they inherited, and write to it */
static void *fork_thread(void *arg)
{
	unsigned int seed = 9;

	while (!stop) {
		pid_t pid = fork();
		int status;

		if (!pid) {
			alarm(60);
			for (int i = 0; i < 64; i++) {
				size_t page = rand_r(&seed) % npages;
				uint32_t *p = (uint32_t *)(mem + page * 4096);

				p[0] = p[1000] = 0xdead;
			}
			_exit(0);
		}
		if (pid < 0) {
			usleep(100000);
			continue;
		}
		waitpid(pid, &status, 0);
		if (status) {
			printf("FAILED: child ended with %#x\n", status);
			fflush(stdout);
			_exit(1);
		}
		forks++;
		usleep(100000);
	}
	return NULL;
}

/* Armed memory that moves about, of a registration of its own */
static void *mremap_thread(void *arg)
{
	int my = uffd_open(F_RWP | F_RWP_ASYNC);
	size_t len = 64 * 4096;
	char *p = other;

	for (uint32_t n = 1; !stop; n++) {
		char *to = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		for (int i = 0; i < 64; i++)
			*(uint32_t *)(p + i * 4096) = n + i;
		reg(my, p, len, R_RWP);
		rwprotect(my, p, len, M_RWP);
		if (n & 1)
			madvise(p, len / 2, 21);
		if (mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
			lost("mremap", n, errno, 0);
		p = to;
		for (int i = 0; i < 64; i++)
			if (*(uint32_t *)(p + i * 4096) != n + i)
				lost("mremap", i, *(uint32_t *)(p + i * 4096), n + i);
		moves++;
		usleep(5000);
	}
	return NULL;
}

static void *pageout_thread(void *arg)
{
	unsigned int seed = 3;

	while (!stop) {
		madvise(mem + rand_r(&seed) % (npages - 64) * 4096, 64 * 4096, 21);
		usleep(3000);
	}
	return NULL;
}

/* Where the threads are; the file stack needs root and CONFIG_STACKTRACE */
static void print_threads(void)
{
	fflush(stdout);
	if (system("cd /proc/$PPID/task && for t in *; do echo \"thread $t\";"
		   "cat $t/syscall; cat $t/stack; done") < 0)
		perror("system");
}

int main(int argc, char **argv)
{
	int seconds = argc > 1 ? atoi(argv[1]) : 600;
	static void *(*const threads[])(void *) = {
		fault_thread, arm_thread, evict_thread, toggle_thread, fork_thread,
		mremap_thread, pageout_thread
	};
	pthread_t t[TOUCHERS + 7];
	unsigned long before = 0;
	int n = 0, still = 0;

	npages = (argc > 2 ? atoi(argv[2]) : 32) * 256ul;
	fd = uffd_open(F_RWP | F_RWP_ASYNC | F_MOVE);
	mem = mmap(NULL, npages * 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	staging = mmap(NULL, npages * 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	other = mmap(NULL, 64 * 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(mem, npages * 4096, MADV_NOHUGEPAGE);
	madvise(staging, npages * 4096, MADV_NOHUGEPAGE);
	/* What a child shares is no longer ours alone and cannot be moved */
	madvise(staging, npages * 4096, MADV_DONTFORK);
	expected = calloc(npages, sizeof(*expected));
	evicted = calloc(npages, 1);
	sum = calloc(npages, sizeof(*sum));
	memset(mem, 0, npages * 4096);
	for (size_t i = 0; i < npages; i++)
		*(uint32_t *)(mem + i * 4096 + 8) = i;
	EQ(reg(fd, mem, npages * 4096, R_RWP | R_MISSING), 0);
	EQ(reg(fd, staging, npages * 4096, R_MISSING), 0);
	for (int i = 0; i < 7; i++)
		pthread_create(&t[n++], NULL, threads[i], NULL);
	for (size_t i = 0; i < TOUCHERS; i++)
		pthread_create(&t[n++], NULL, toucher_thread, (void *)i);

	for (int s = 0; s < seconds; s += 5) {
		sleep(5);
		/* An overloaded host stops a machine for seconds, not for minutes */
		still = touches == before ? still + 5 : 0;
		if (still >= 120) {
			print_threads();
			printf("FAILED: no progress in two minutes\n");
			fflush(stdout);
			_exit(1);
		}
		if (s % 60 == 0) {
			printf("%d s: touches %lu faults %lu evictions %lu forks %lu mremaps %lu\n",
			       s, touches, faults, evictions, forks, moves);
			fflush(stdout);
		}
		before = touches;
	}
	stop = true;
	/* The fault thread goes last: the others may wait for it */
	for (int i = n - 1; i > 0; i--)
		pthread_join(t[i], NULL);
	handler_end = true;
	pthread_join(t[0], NULL);
	pthread_mutex_lock(&evict_lock);
	for (size_t i = 0; i < npages; i++)
		fetch(i);
	pthread_mutex_unlock(&evict_lock);
	set_mode(fd, F_RWP_ASYNC, 0);
	close(fd);
	for (size_t i = 0; i < npages; i++) {
		uint32_t *p = (uint32_t *)(mem + i * 4096);

		if (p[0] != expected[i] || p[1000] != expected[i] || p[2] != i)
			lost("at the end", i, p[0], expected[i]);
	}
	printf("touches %lu faults %lu evictions %lu fetches %lu toggles %lu forks %lu mremaps %lu busy %lu\n",
	       touches, faults, evictions, fetches, toggles, forks, moves, busy);
	if (!evictions || !fetches || !faults || !forks || !moves) {
		printf("FAILED: some of it never happened\n");
		return 1;
	}
	printf("no write lost\n");
	return 0;
}
