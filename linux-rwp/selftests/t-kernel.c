// SPDX-License-Identifier: GPL-2.0
/*
 * What the kernel does to armed memory for reasons of its own: a core dump must
 * contain it, an mremap() that fails half-way must put it back as it was, a
 * breakpoint (uprobe) is no access.
 */
#define _GNU_SOURCE
#include "rwp.h"
#include <elf.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define CORE "/tmp/rwp-core"
#define CORE_PATTERN "/proc/sys/kernel/core_pattern"

/*
 * The byte at p in a core file, or -1 if that is not in it: the file ends before
 * it where the dump was cut off by RLIMIT_CORE.
 */
static int core_byte(int core, const void *p)
{
	Elf64_Ehdr head;
	Elf64_Phdr seg;
	unsigned char byte;

	EQ(pread(core, &head, sizeof(head), 0), sizeof(head));
	CHECK(!memcmp(head.e_ident, ELFMAG, SELFMAG), "not a core file");
	for (int i = 0; i < head.e_phnum; i++) {
		EQ(pread(core, &seg, sizeof(seg), head.e_phoff + i * sizeof(seg)),
		   sizeof(seg));
		if (seg.p_type != PT_LOAD ||
		    (uintptr_t)p - seg.p_vaddr >= seg.p_filesz)
			continue;
		if (pread(core, &byte, 1, seg.p_offset + (uintptr_t)p -
			  seg.p_vaddr) != 1)
			return -1;
		return byte;
	}
	return -1;
}

/*
 * A child arms [p, p + len), whose pages of psz bytes begin with their number
 * from 1, gives them the protection prot, and dies. Returns its core file.
 */
static int die_armed(char *p, size_t len, size_t psz, bool async, int prot)
{
	const struct rlimit limit = { 64 * MIB, 64 * MIB };
	int core = open(CORE_PATTERN, O_RDONLY), fd, status;
	char pattern[128] = "";
	pid_t pid;

	unlink(CORE);
	if (core < 0 || read(core, pattern, sizeof(pattern) - 1) < 0 ||
	    !set(CORE_PATTERN, CORE))
		skip("no core dumps");
	close(core);
	pid = fork();
	if (!pid) {
		/* If the dump hangs, so does the test, which is killed */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		CHECK(!setrlimit(RLIMIT_CORE, &limit), "%m");
		/* All kinds of memory, see core(5) */
		CHECK(set("/proc/self/coredump_filter", "0x7f"), "%m");
		for (size_t i = 0; i < len / psz; i++)
			*(volatile char *)(p + i * psz) = i + 1;
		fd = uffd_open(F_RWP | (async ? F_RWP_ASYNC : 0));
		EQ(reg(fd, p, len, R_RWP), 0);
		EQ(rwprotect(fd, p, len, M_RWP), 0);
		for (size_t i = 0; i < len / psz; i++) {
			CHECK(armed(p + i * psz), "page %zu", i);
			CHECK(psz == 4096 || cat(p + i * psz, 4096) & C_HUGE,
			      "page %zu is not huge", i);
		}
		EQ(mprotect(p, len, prot), 0);
		raise(SIGABRT);
	}
	waitpid(pid, &status, 0);
	set(CORE_PATTERN, pattern);
	CHECK(WIFSIGNALED(status) && WCOREDUMP(status), "no core file: status %#x",
	      status);
	core = open(CORE, O_RDONLY);
	CHECK(core >= 0, "%m");
	unlink(CORE);
	return core;
}

/* All pages have to be in the core file. */
static void check_core(char *p, size_t len, size_t psz, bool async, int prot)
{
	int core = die_armed(p, len, psz, async, prot);

	for (size_t i = 0; i < len / psz; i++) {
		int byte = core_byte(core, p + i * psz);

		CHECK(byte == (int)i + 1, "%s: page %zu is %d in the core file",
		      async ? "async" : "sync", i, byte);
	}
	close(core);
}

static void check_cores(char *p, size_t len, size_t psz)
{
	check_core(p, len, psz, false, RW);
	check_core(p, len, psz, true, RW);
	check_core(p, len, psz, true, PROT_NONE);
}

static void core_dump(enum kind kind)
{
	struct mem m = mem_new(kind, RW);

	check_cores(m.p, m.len, m.psz);
}

static void core_dump_thp(enum kind kind)
{
	char *p = thp_new(2);

	/* The child shall have its own, else it would split them */
	CHECK(!madvise(p, 4 * MIB, MADV_DONTNEED), "%m");
	check_cores(p, 4 * MIB, 2 * MIB);
}

/* May be missing in synchronous mode, or if PROT_NONE; but the dump has an end */
static void core_dump_gigantic(enum kind kind)
{
	/* Not reserved: who dies is a child, which has no share in that */
	char *p = gigantic_new(MAP_PRIVATE | MAP_NORESERVE);

	check_core(p, GIB, GIB, true, RW);
	close(die_armed(p, GIB, GIB, false, RW));
	close(die_armed(p, GIB, GIB, true, PROT_NONE));
}

/* Where len bytes are half below, half above a multiple of 1 GiB */
static char *place_for(size_t len)
{
	char *p = mmap(NULL, 3 * GIB, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(p != MAP_FAILED, "%m");
	CHECK(!munmap(p, 3 * GIB), "%m");
	return (char *)(((uintptr_t)p + 2 * GIB) & ~(GIB - 1)) - len / 2;
}

/*
 * Let the move fail at each allocation it makes, the last of which is a page
 * table for the second half when the first has been moved. See
 * Documentation/fault-injection/fault-injection.rst.
 */
static void check_move(char *p, size_t len, size_t psz)
{
	int fd = uffd_open(F_RWP | F_RWP_ASYNC), nth, failed = 0;
	char *to = place_for(len), buf[8];

	nth = open("/proc/self/fail-nth", O_RDWR);
	if (nth < 0 || !set("/sys/kernel/debug/fail_page_alloc/min-order", "0") ||
	    !set("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N") ||
	    !set("/sys/kernel/debug/fail_page_alloc/verbose", "0"))
		skip("no fault injection");
	EQ(reg(fd, p, len, R_RWP), 0);
	EQ(rwprotect(fd, p, len, M_RWP), 0);
	for (;;) {
		snprintf(buf, sizeof(buf), "%d", failed + 1);
		CHECK(write(nth, buf, strlen(buf)) > 0, "%m");
		if (mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to)
			break;
		CHECK(errno == ENOMEM && failed++ < 20, "%m");
		CHECK(vmflag(p, "ur"), "not registered");
		for (size_t i = 0; i < len / psz; i++)
			CHECK(armed(p + i * psz), "page %zu, failure %d", i, failed);
	}
	CHECK(write(nth, "0", 1) == 1, "%m");
	CHECK(failed > 1, "%d failures", failed);
	CHECK(!vmflag(to, "ur"), "still registered");
	for (size_t i = 0; i < len / psz; i++) {
		CHECK(!bit57(to + i * psz), "page %zu", i);
		EQ(to[i * psz], i + 1);
	}
}

static void mremap_fails(enum kind kind)
{
	struct mem m = mem_new(kind, RW);

	mem_fill(&m);
	check_move(m.p, m.len, m.psz);
}

static void mremap_fails_thp(enum kind kind)
{
	check_move(thp_new(2), 4 * MIB, 2 * MIB);
}

/* Into memory that is PROT_NONE: there, no fault resolves it first */
static void uprobe(enum kind kind)
{
	struct perf_event_attr attr = { .size = sizeof(attr) };
	int file = memfd_create("rwp", 0), fd = uffd_open(F_RWP | F_RWP_ASYNC);
	char path[32], nops[4096], *p;
	int probe;

	attr.type = get("/sys/bus/event_source/devices/uprobe/type");
	if ((int)attr.type < 0)
		skip("no uprobes");
	memset(nops, 0x90, sizeof(nops));
	EQ(write(file, nops, sizeof(nops)), sizeof(nops));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	attr.config1 = (uintptr_t)path;
	p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
	CHECK(p != MAP_FAILED, "%m");
	EQ(*(volatile unsigned char *)p, 0x90);
	EQ(reg(fd, p, 4096, R_RWP), 0);
	EQ(rwprotect(fd, p, 4096, M_RWP), 0);
	CHECK(armed(p), "not armed");
	EQ(mprotect(p, 4096, PROT_NONE), 0);
	probe = syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
	CHECK(probe >= 0, "%m");
	EQ(mprotect(p, 4096, PROT_READ | PROT_EXEC), 0);
	CHECK(armed(p), "a breakpoint disarmed");
	EQ(*(volatile unsigned char *)p, 0xcc);
	CHECK(hot(p), "not hot");
	close(probe);
	EQ(*(volatile unsigned char *)p, 0x90);
}

static const struct test tests[] = {
	{ "core-dump", core_dump, ALL_KINDS },
	{ "core-dump-thp", core_dump_thp },
	{ "core-dump-gigantic", core_dump_gigantic, K(HUGETLB_PRIV) },
	{ "mremap-fails", mremap_fails, ALL_KINDS },
	{ "mremap-fails-thp", mremap_fails_thp },
	{ "uprobe", uprobe },
	{ }
};

int main(int argc, char **argv)
{
	return run_tests(tests, argc, argv);
}
