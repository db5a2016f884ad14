/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the RWP test programs share: the uAPI, so that they build with any
 * headers, one-line forms of the ioctls, the kinds of memory, and a small TAP
 * runner.
 *
 * Each test runs in a child of its own with an alarm, so that a fault loop, a
 * lost wake-up or a crash is one failed test and not the end of the program.
 * CHECK() ends the child. Results go to standard output as TAP.
 */
#ifndef RWP_H
#define RWP_H

#include <errno.h>
#include <linux/types.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* include/uapi/linux/userfaultfd.h */
#define API		0xAAull
#define F_FORK		(1ull << 1)
#define F_REMAP		(1ull << 2)
#define F_SIGBUS	(1ull << 7)
#define F_THREAD_ID	(1ull << 8)
#define F_EXACT		(1ull << 11)
#define F_WP_ASYNC	(1ull << 15)
#define F_MOVE		(1ull << 16)
#define F_RWP		(1ull << 17)
#define F_RWP_ASYNC	(1ull << 18)
#define F_MINOR		((1ull << 9) | (1ull << 10))

#define R_MISSING	1ull
#define R_WP		2ull
#define R_MINOR		4ull
#define R_RWP		8ull

#define MSG_PAGEFAULT	0x12
#define MSG_FORK	0x13
#define MSG_REMAP	0x14
#define FL_WRITE	1ull
#define FL_RWP		8ull

struct u_api { __u64 api, features, ioctls; };
struct u_range { __u64 start, len; };
struct u_reg { __u64 start, len, mode, ioctls; };
struct u_rwp { __u64 start, len, mode; };
struct u_mode { __u64 enable, disable; };
struct u_copy { __u64 dst, src, len, mode; __s64 copy; };
struct u_msg {
	__u8 event, r1;
	__u16 r2;
	__u32 r3;
	union {
		struct { __u64 flags, address; __u32 ptid; } pf;
		struct { __u32 ufd; } fork;
		__u64 pad[3];
	};
} __attribute__((packed));

#define U_API		0xc018aa3fu
#define U_REGISTER	0xc020aa00u
#define U_UNREGISTER	0x8010aa01u
#define U_WAKE		0x8010aa02u
#define U_COPY		0xc028aa03u
#define U_MOVE		0xc028aa05u
#define U_WRITEPROTECT	0xc018aa06u
#define U_RWPROTECT	0xc018aa09u
#define U_SET_MODE	0x4010aa0au

#define M_RWP		1ull
#define M_DONTWAKE	2ull

/* include/uapi/linux/fs.h */
#define C_WPALLOWED	(1u << 0)
#define C_WRITTEN	(1u << 1)
#define C_FILE		(1u << 2)
#define C_PRESENT	(1u << 3)
#define C_SWAPPED	(1u << 4)
#define C_PFNZERO	(1u << 5)
#define C_HUGE		(1u << 6)
#define C_SOFT_DIRTY	(1u << 7)
#define C_ACCESSED	(1u << 9)
#define S_WP_MATCHING	1ull
#define S_CHECK_WPASYNC	2ull
#define S_RWP_REARM	(1ull << 48)	/* linux-rwp only */
#define U_PAGEMAP_SCAN	0xc0606610u

struct s_region { __u64 start, end, categories; };
struct s_arg {
	__u64 size, flags, start, end, walk_end, vec, vec_len, max_pages,
	      category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define MIB (1ul << 20)
#define GIB (1ul << 30)
#define RW (PROT_READ | PROT_WRITE)

/* Memory under test: NPAGES pages of psz bytes each, page i filled with i+1. */
enum kind { ANON, SHMEM, SHMEM_PRIV, HUGETLB, HUGETLB_PRIV, NKINDS };
extern const char *const kind_name[NKINDS];
#define NPAGES 8

struct mem {
	char *p;
	size_t len, psz;
	int fd;
};

struct mem mem_new(enum kind kind, int prot);	/* mapped, not populated */
void mem_fill(struct mem *m);
void mem_check(struct mem *m, const char *where);
static inline bool kind_huge(enum kind k) { return k >= HUGETLB; }
static inline bool kind_private(enum kind k)
{
	return k == ANON || k == SHMEM_PRIV || k == HUGETLB_PRIV;
}

/* userfaultfd; all return 0 or a descriptor, or -errno */
int uffd_raw(int flags);
int uffd_open(__u64 features);			/* skips if RWP is not there */
int uffd_api(int fd, struct u_api *api);
int reg(int fd, void *p, size_t len, __u64 mode);
int reg_ioctls(int fd, void *p, size_t len, __u64 mode, __u64 *ioctls);
int unreg(int fd, void *p, size_t len);
int rwprotect(int fd, void *p, size_t len, __u64 mode);
int set_mode(int fd, __u64 enable, __u64 disable);
int wake(int fd, void *p, size_t len);
__s64 uffd_move(int fd, void *dst, void *src, size_t len);

/* PAGEMAP_SCAN of this process, or another: the number of regions, or -errno */
int pagemap_scan(struct s_arg *a);
int pagemap_scan_of(pid_t pid, struct s_arg *a);
bool can_rearm(void);				/* PM_SCAN_RWP_REARM, linux-rwp only */

/* What the kernel says of the page at p */
unsigned int cat(void *p, size_t len);		/* PAGEMAP_SCAN categories */
bool bit57(void *p);				/* /proc/self/pagemap */
bool vmflag(void *p, const char *flag);		/* smaps VmFlags */
long smaps_kb(void *p, const char *field);
static inline bool hot(void *p) { return cat(p, 4096) & C_ACCESSED; }
static inline bool armed(void *p)
{
	unsigned int c = cat(p, 4096);

	return (c & (C_PRESENT | C_SWAPPED)) && !(c & C_ACCESSED) && bit57(p);
}

/* A thread that answers faults by making the page accessible */
struct handler {
	int fd;
	size_t psz;
	pthread_t thread;
	int stop[2];
	int count;
	struct u_msg last;
};
void handler_start(struct handler *h, int fd, size_t psz);
int handler_stop(struct handler *h);		/* number of messages */

/* A thread that does one access, so that it may block */
struct toucher {
	pthread_t thread;
	volatile char *p;
	bool write;
	volatile int done;
	int tid;
};
void toucher_start(struct toucher *t, void *p, bool write);
bool toucher_blocked(struct toucher *t);	/* after a while */
void toucher_join(struct toucher *t);

/* Minor faults of this thread so far */
long minflt(void);

/* System knobs; set() returns whether it could be written */
bool set(const char *path, const char *value);
long get(const char *path);
void need_swap(void);
void need_hugepages(long n);
char *thp_new(size_t n);		/* n huge pages, populated, or skips */
char *thp_new_shmem(void);		/* one, of a memfd; its first byte is 1 */
char *gigantic_new(int flags);		/* 1 GiB of one page to be, or skips */

/* TAP */
void fail(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4), noreturn));
void skip(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
#define CHECK(c, fmt, ...) do { if (!(c)) \
	fail(__FILE__, __LINE__, "%s: " fmt, #c, ##__VA_ARGS__); } while (0)
#define EQ(a, b) do { long long _a = (a), _b = (b); \
	if (_a != _b) fail(__FILE__, __LINE__, "%s is %lld (%#llx), not %s", #a, _a, _a, #b); } while (0)

struct test {
	const char *name;
	void (*fn)(enum kind kind);
	unsigned int kinds;	/* bit mask; 0: the test has no kind */
};
#define ALL_KINDS ((1u << NKINDS) - 1)
#define K(k) (1u << (k))
int run_tests(const struct test *tests, int argc, char **argv);

#endif
