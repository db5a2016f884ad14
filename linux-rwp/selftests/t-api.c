// SPDX-License-Identifier: GPL-2.0
/*
 * The ioctls: what is accepted, what is refused, with which error and in which
 * order, and that a refused call has changed nothing.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <fcntl.h>

static void api_errno(enum kind kind)
{
	struct u_api api = { .api = API, .features = F_RWP_ASYNC };
	struct u_rwp rwp = { 0, 4096, M_RWP };
	int fd = uffd_raw(0);

	EQ(rwprotect(fd, NULL, 4096, M_RWP), -EINVAL);	/* not initialised */
	EQ(set_mode(fd, 0, 0), -EINVAL);
	EQ(reg(fd, &rwp, 4096, R_RWP), -EINVAL);

	EQ(uffd_api(fd, &api), -EINVAL);		/* ASYNC without RWP */
	CHECK(!api.api && !api.features && !api.ioctls, "struct not zeroed");
	api = (struct u_api){ .api = API, .features = F_RWP | 1ull << 40 };
	EQ(uffd_api(fd, &api), -EINVAL);
	CHECK(!api.api && !api.features && !api.ioctls, "struct not zeroed");
	api = (struct u_api){ .api = 1, .features = F_RWP };
	EQ(uffd_api(fd, &api), -EINVAL);
	/* None of this used the descriptor up */
	api = (struct u_api){ .api = API, .features = F_RWP | F_RWP_ASYNC };
	EQ(uffd_api(fd, &api), 0);
	EQ(api.ioctls, 0x8000000000000403ll);
	CHECK(api.features & F_RWP && api.features & F_RWP_ASYNC, "not listed");
	api = (struct u_api){ .api = API };
	EQ(uffd_api(fd, &api), -EINVAL);		/* second time */
}

static void ioctls_mask(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_MINOR);
	__u64 io, base = kind_huge(kind) ? 0x30c : 0x33c;

	EQ(reg_ioctls(fd, m.p, m.len, R_RWP, &io), 0);
	EQ(io, base);
	EQ(reg_ioctls(fd, m.p, m.len, R_RWP | R_MISSING, &io), 0);
	EQ(io, base);
	if (kind == ANON) {
		EQ(reg(fd, m.p, m.len, R_RWP | R_MINOR), -EINVAL);
		return;
	}
	EQ(reg_ioctls(fd, m.p, m.len, R_RWP | R_MINOR, &io), 0);
	EQ(io, base | 0x80);
}

static void register_errno(enum kind kind)
{
	struct mem m = mem_new(ANON, RW), sh = mem_new(SHMEM, RW);
	int fd = uffd_open(F_RWP), plain, other = uffd_open(F_RWP), ro;
	struct u_api api = { .api = API };
	char path[64], *p;

	plain = uffd_raw(0);
	EQ(uffd_api(plain, &api), 0);
	EQ(ioctl(fd, U_REGISTER, 8) ? -errno : 0, -EFAULT);
	EQ(reg(fd, m.p, m.len, 0), -EINVAL);
	EQ(reg(fd, m.p, m.len, R_RWP | 1 << 6), -EINVAL);
	EQ(reg(plain, m.p, m.len, R_RWP), -EINVAL);	/* not negotiated */
	EQ(reg(fd, m.p, m.len, R_RWP | R_WP), -EINVAL);
	EQ(reg(fd, m.p + 1, 4096, R_RWP), -EINVAL);
	EQ(reg(fd, m.p, 0, R_RWP), -EINVAL);
	EQ(reg(fd, m.p, 100, R_RWP), -EINVAL);
	EQ(reg(fd, m.p, -4096ul, R_RWP), -EINVAL);
	/* A file that is neither shmem nor hugetlbfs */
	ro = open("/proc/self/exe", O_RDONLY);
	p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, ro, 0);
	CHECK(p != MAP_FAILED, "%m");
	EQ(reg(fd, p, 4096, R_RWP), -EINVAL);
	/* No write permission to the file: EPERM, but after PROT_NONE */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", sh.fd);
	ro = open(path, O_RDONLY);
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, ro, 0);
	CHECK(p != MAP_FAILED, "%m");
	EQ(reg(fd, p, 4096, R_RWP), -EPERM);
	mprotect(p, 4096, PROT_NONE);
	EQ(reg(fd, p, 4096, R_RWP), -EINVAL);
	/* The second VMA is refused: the first is left alone */
	mprotect(m.p + 4 * 4096, 4096, PROT_NONE);
	EQ(reg(fd, m.p, m.len, R_RWP), -EINVAL);
	CHECK(!vmflag(m.p, "ur"), "half registered");
	mprotect(m.p + 4 * 4096, 4096, RW);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	CHECK(vmflag(m.p, "ur"), "not in smaps");
	EQ(reg(other, m.p, m.len, R_RWP), -EBUSY);
	EQ(unreg(fd, m.p, m.len), 0);
	CHECK(!vmflag(m.p, "ur"), "still in smaps");
	EQ(reg(other, m.p, m.len, R_RWP), 0);
}

static void reregister(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP), wp = reg(fd, m.p, m.len, R_WP);

	/* In files it needs PTE markers */
	CHECK(!wp || (wp == -EINVAL && kind != ANON), "%d", wp);
	EQ(unreg(fd, m.p, m.len), 0);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(reg(fd, m.p, m.len, R_WP), wp ? wp : -EBUSY);
	EQ(reg(fd, m.p, m.len, R_MISSING), -EBUSY);
	EQ(reg(fd, m.p, m.len, R_RWP | R_MISSING), 0);
	CHECK(vmflag(m.p, "um") && vmflag(m.p, "ur"), "mode not added");
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	CHECK(vmflag(m.p, "um"), "a no-op removed a mode");
	EQ(unreg(fd, m.p, m.len), 0);
	if (reg(fd, m.p, m.len, R_WP) == 0) {
		EQ(reg(fd, m.p, m.len, R_RWP), -EBUSY);
		EQ(reg(fd, m.p, m.len, R_MISSING), -EBUSY);
		EQ(unreg(fd, m.p, m.len), 0);
	}
	EQ(reg(fd, m.p, m.len, R_MISSING), 0);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
}

static void rwprotect_errno(enum kind kind)
{
	struct mem m = mem_new(ANON, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);

	mem_fill(&m);
	EQ(ioctl(fd, U_RWPROTECT, 8) ? -errno : 0, -EFAULT);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), -ENOENT);
	EQ(reg(fd, m.p, 4 * 4096, R_RWP), 0);
	EQ(rwprotect(fd, m.p + 1, 4096, M_RWP), -EINVAL);
	EQ(rwprotect(fd, m.p, 0, M_RWP), -EINVAL);
	EQ(rwprotect(fd, m.p, 5, M_RWP), -EINVAL);
	EQ(rwprotect(fd, m.p, 4096, 4), -EINVAL);
	EQ(rwprotect(fd, m.p, 4096, M_RWP | M_DONTWAKE), -EINVAL);
	/* The second VMA is not registered: nothing of the first is armed */
	EQ(rwprotect(fd, m.p, m.len, M_RWP), -ENOENT);
	CHECK(!bit57(m.p), "half applied");
	/* A hole is tolerated, holes alone are not */
	munmap(m.p + 2 * 4096, 4096);
	EQ(rwprotect(fd, m.p, 4 * 4096, M_RWP), 0);
	CHECK(armed(m.p) && armed(m.p + 3 * 4096), "not armed around the hole");
	EQ(rwprotect(fd, m.p + 2 * 4096, 4096, M_RWP), -ENOENT);
	/* The other ioctls know the mode */
	EQ(rwprotect(fd, m.p, 4096, 0), 0);
	CHECK(!bit57(m.p) && hot(m.p), "not disarmed");
	struct u_rwp wp = { (uintptr_t)m.p, 4096, 1 };
	EQ(ioctl(fd, U_WRITEPROTECT, &wp) ? -errno : 0, -ENOENT);
	struct u_copy c = { (uintptr_t)m.p, (uintptr_t)m.p + 5 * 4096, 4096, 2 };
	EQ(ioctl(fd, U_COPY, &c) ? -errno : 0, -EINVAL);
}

static void rwprotect_hugetlb(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);

	EQ(reg(fd, m.p + 4096, m.psz, R_RWP), -EINVAL);
	EQ(reg(fd, m.p, m.psz + 4096, R_RWP), -EINVAL);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p + 4096, m.psz, M_RWP), -EINVAL);
	EQ(rwprotect(fd, m.p, 4096, M_RWP), -EINVAL);
	EQ(rwprotect(fd, m.p, m.psz, M_RWP), 0);
}

static void set_mode_errno(enum kind kind)
{
	int fd = uffd_open(F_RWP), plain = uffd_raw(0);
	struct u_api api = { .api = API };
	char path[64], line[128];
	unsigned int features = 0;
	FILE *f;

	EQ(uffd_api(plain, &api), 0);
	EQ(ioctl(fd, U_SET_MODE, 8) ? -errno : 0, -EFAULT);
	EQ(set_mode(fd, F_RWP_ASYNC, F_RWP_ASYNC), -EINVAL);
	EQ(set_mode(fd, F_WP_ASYNC, 0), -EINVAL);
	EQ(set_mode(fd, 0, F_RWP), -EINVAL);
	EQ(set_mode(fd, 0, 0), 0);
	EQ(set_mode(plain, F_RWP_ASYNC, 0), -EINVAL);
	EQ(set_mode(plain, 0, F_RWP_ASYNC), 0);
	EQ(set_mode(fd, F_RWP_ASYNC, 0), 0);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	while (fgets(line, sizeof(line), f))
		sscanf(line, "API:\taa:%x:", &features);
	CHECK(features & F_RWP_ASYNC, "fdinfo is not live");
	CHECK(strstr(line, ":80000000000007ff"), "fdinfo: %s", line);
}

static void ownership(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int a = uffd_open(F_RWP | F_RWP_ASYNC), b = uffd_open(F_RWP);

	mem_fill(&m);
	EQ(reg(a, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(b, m.p, m.len, M_RWP), -ENOENT);
	CHECK(!bit57(m.p), "a foreign descriptor armed");
	EQ(rwprotect(a, m.p, m.len, M_RWP), 0);
	EQ(rwprotect(b, m.p, m.len, 0), -ENOENT);
	CHECK(armed(m.p), "a foreign descriptor disarmed");
}

/* With the limit lowered to the present number of VMAs, and room more */
static int unreg_at_limit(int fd, void *p, size_t len, int room)
{
	static const char knob[] = "/proc/sys/vm/max_map_count";
	static char maps[1 << 16];
	char old[32], limit[32];
	int ret, n = 0, vmas = 0, f = open("/proc/self/maps", O_RDONLY);

	for (ssize_t got = 1; got > 0; n += got)
		got = read(f, maps + n, sizeof(maps) - 1 - n);
	close(f);
	maps[n] = 0;
	for (char *line = strtok(maps, "\n"); line; line = strtok(NULL, "\n"))
		vmas += !strstr(line, "[vsyscall]");	/* that is none */
	snprintf(old, sizeof(old), "%ld", get(knob));
	snprintf(limit, sizeof(limit), "%d", vmas + room);
	if (!set(knob, limit))
		skip("the limit cannot be changed");
	ret = unreg(fd, p, len);
	set(knob, old);
	return ret;
}

/* Unregistering a part that has no VMAs left to be split off disarms nothing */
static void unregister_limit(enum kind kind)
{
	struct mem m = mem_new(kind, RW);
	int fd = uffd_open(F_RWP | F_RWP_ASYNC);
	/* Mappings of hugetlbfs are never merged */
	int merged = kind_huge(kind) ? -ENOMEM : 0;
	size_t psz = m.psz;

	mem_fill(&m);
	EQ(reg(fd, m.p, m.len, R_RWP), 0);
	EQ(rwprotect(fd, m.p, m.len, M_RWP), 0);
	for (int room = 0; room < 2; room++) {
		EQ(unreg_at_limit(fd, m.p + 3 * psz, psz, room), -ENOMEM);
		for (int i = 0; i < NPAGES; i++)
			CHECK(armed(m.p + i * psz), "page %d, room %d", i, room);
	}
	EQ(unreg_at_limit(fd, m.p + 3 * psz, psz, 2), 0);
	for (int i = 0; i < NPAGES; i++)
		CHECK(bit57(m.p + i * psz) == (i != 3), "page %d", i);
	/* Both neighbours of page 3 can be added to it without a new VMA */
	EQ(unreg_at_limit(fd, m.p + 2 * psz, psz, 0), merged);
	EQ(bit57(m.p + 2 * psz), !!merged);
	EQ(unreg_at_limit(fd, m.p + 4 * psz, psz, 0), merged);
	EQ(bit57(m.p + 4 * psz), !!merged);
	/* But page 6, with page 5 still registered, cannot; all of it can */
	EQ(unreg_at_limit(fd, m.p + 6 * psz, psz, 1), -ENOMEM);
	CHECK(armed(m.p + 6 * psz), "disarmed");
	EQ(unreg_at_limit(fd, m.p, m.len, 0), 0);
	CHECK(!bit57(m.p) && !bit57(m.p + 7 * psz), "still armed");
	mem_check(&m, "content");
}

/* What is not registered does not matter, nor where the range ends in it */
static void unregister_end(enum kind kind)
{
	struct mem huge = mem_new(kind, RW);
	int fd = uffd_open(F_RWP);
	int flags = MAP_FIXED | (kind_private(kind) ? MAP_PRIVATE : MAP_SHARED);
	char *p = mmap(NULL, 2 * huge.psz, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0), *at;

	CHECK(p != MAP_FAILED, "%m");
	at = (char *)(((uintptr_t)p + huge.psz) & ~(huge.psz - 1));
	munmap(p, 2 * huge.psz);
	p = mmap(at - 4096, 4096, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(p == at - 4096, "%m");
	CHECK(mmap(at, huge.psz, RW, flags, huge.fd, 0) == at, "%m");
	EQ(reg(fd, p, 4096, R_MISSING), 0);
	EQ(unreg(fd, p, 2 * 4096), 0);
	CHECK(!vmflag(p, "um"), "still registered");
	/* But registered it does */
	EQ(reg(fd, p, 4096, R_MISSING), 0);
	EQ(reg(fd, at, huge.psz, R_RWP), 0);
	EQ(unreg(fd, p, 2 * 4096), -EINVAL);
	CHECK(vmflag(p, "um") && vmflag(at, "ur"), "half unregistered");
}

static const struct test tests[] = {
	{ "api-errno", api_errno },
	{ "ioctls-mask", ioctls_mask, ALL_KINDS },
	{ "register-errno", register_errno },
	{ "reregister", reregister, ALL_KINDS },
	{ "rwprotect-errno", rwprotect_errno },
	{ "rwprotect-hugetlb", rwprotect_hugetlb, K(HUGETLB) | K(HUGETLB_PRIV) },
	{ "set-mode-errno", set_mode_errno },
	{ "ownership", ownership, ALL_KINDS },
	{ "unregister-limit", unregister_limit, ALL_KINDS },
	{ "unregister-end", unregister_end, K(HUGETLB) | K(HUGETLB_PRIV) },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
