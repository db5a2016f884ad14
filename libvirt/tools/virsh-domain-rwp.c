/*
 * virsh-domain-rwp.c: commands for guest memory of <source type='rwp'/>
 *
 * SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Thin wrappers of the QMP commands of memory-backend-rwp, by
 * virDomainQemuMonitorCommand(), so that they need no change of the API.
 * Options that are numbers have the names of the arguments of the QMP command.
 * libvirt ignores jobs of QEMU that it did not start, so --wait asks QEMU.
 */

#include <config.h>
#include "virsh-domain-rwp.h"
#include "virsh-util.h"

#include <signal.h>

#include "internal.h"
#include "virjson.h"

#define VIRSH_RWP_OPT(_name, _type, _help) \
    {.name = _name, .type = _type, .help = _help}

#define VIRSH_RWP_OPT_MEMORY \
    VIRSH_RWP_OPT("memory", VSH_OT_STRING, \
                  N_("ID of the memory backend, if the domain has several"))

/* Runs a QMP command and returns what it returned, or reports its error. */
static virJSONValue *
virshRwpCall(vshControl *ctl,
             virDomainPtr dom,
             const char *name,
             virJSONValue **args)
{
    g_autoptr(virJSONValue) command = NULL;
    g_autoptr(virJSONValue) reply = NULL;
    g_autofree char *commandstr = NULL;
    g_autofree char *replystr = NULL;
    virJSONValue *error;
    virJSONValue *ret = NULL;
    virJSONValue *none = NULL;

    if (virJSONValueObjectAdd(&command,
                              "s:execute", name,
                              "A:arguments", args ? args : &none,
                              NULL) < 0 ||
        !(commandstr = virJSONValueToString(command, false))) {
        vshSaveLibvirtError();
        return NULL;
    }

    if (virDomainQemuMonitorCommand(dom, commandstr, &replystr, 0) < 0)
        return NULL;

    if (!(reply = virJSONValueFromString(replystr))) {
        vshSaveLibvirtError();
        return NULL;
    }

    if ((error = virJSONValueObjectGetObject(reply, "error"))) {
        vshError(ctl, _("%1$s failed: %2$s"), name,
                 NULLSTR(virJSONValueObjectGetString(error, "desc")));
        return NULL;
    }

    if (virJSONValueObjectRemoveKey(reply, "return", &ret) < 0 || !ret)
        vshError(ctl, _("reply to '%1$s' without a return value"), name);

    return ret;
}


/* Returns the arguments for a command: the ID of the memory backend, and all
 * numbers among the options, which have the names of the arguments. */
static virJSONValue *
virshRwpArgs(vshControl *ctl,
             const vshCmd *cmd,
             virDomainPtr dom)
{
    g_autoptr(virJSONValue) args = virJSONValueNewObject();
    g_autoptr(virJSONValue) info = NULL;
    const char *memory = NULL;
    vshCmdOpt *opt;

    if (vshCommandOptStringQuiet(ctl, cmd, "memory", &memory) < 0)
        return NULL;

    if (!memory) {
        if (!(info = virshRwpCall(ctl, dom, "query-rwp", NULL)))
            return NULL;

        if (virJSONValueArraySize(info) != 1) {
            vshError(ctl, _("the domain has %1$zu memory backends of type 'rwp': use --memory to choose one"),
                     virJSONValueArraySize(info));
            return NULL;
        }

        memory = virJSONValueObjectGetString(virJSONValueArrayGet(info, 0), "id");
    }

    if (virJSONValueObjectAppendString(args, "id", memory) < 0)
        return NULL;

    for (opt = cmd->opts; opt && opt->def; opt++) {
        unsigned long long value;

        if (opt->def->type != VSH_OT_INT || !opt->present)
            continue;

        if (vshCommandOptScaledInt(ctl, cmd, opt->def->name, &value, 1, ULLONG_MAX) < 0 ||
            virJSONValueObjectAppendNumberUlong(args, opt->def->name, value) < 0)
            return NULL;
    }

    return g_steal_pointer(&args);
}


/*
 * "domrwpinfo" command
 */
static const vshCmdInfo info_domrwpinfo = {
    .help = N_("figures of guest memory that can be tracked and evicted"),
    .desc = N_("Prints the figures of the memory backends of type 'rwp'. Sizes are in bytes."),
};

static const vshCmdOptDef opts_domrwpinfo[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_ACTIVE),
    VIRSH_RWP_OPT_MEMORY,
    {.name = NULL}
};

struct virshRwpLinesData {
    GPtrArray *lines;
    const char *prefix;
};

/* Adds a line for each member; objects within are put into the names. */
static int
virshRwpLines(const char *key,
              virJSONValue *value,
              void *opaque)
{
    struct virshRwpLinesData *data = opaque;
    g_autofree char *name = g_strconcat(data->prefix, key, NULL);
    g_autofree char *str = NULL;

    if (virJSONValueIsObject(value)) {
        g_autofree char *prefix = g_strconcat(name, ".", NULL);
        struct virshRwpLinesData inner = { data->lines, prefix };

        return virJSONValueObjectForeachKeyValue(value, virshRwpLines, &inner);
    }

    if (!virJSONValueGetString(value) &&
        !(str = virJSONValueToString(value, false)))
        return -1;

    g_ptr_array_add(data->lines,
                    g_strdup_printf("%-24s %s", name,
                                    str ? str : virJSONValueGetString(value)));
    return 0;
}

static gint
virshRwpCompare(gconstpointer a,
                gconstpointer b)
{
    return strcmp(*(char *const *) a, *(char *const *) b);
}

static bool
cmdDomrwpinfo(vshControl *ctl, const vshCmd *cmd)
{
    g_autoptr(virshDomain) dom = NULL;
    g_autoptr(virJSONValue) args = NULL;
    g_autoptr(virJSONValue) info = NULL;
    const char *memory = NULL;
    size_t i;
    size_t j;

    if (!(dom = virshCommandOptDomain(ctl, cmd, NULL)) ||
        vshCommandOptStringQuiet(ctl, cmd, "memory", &memory) < 0 ||
        virJSONValueObjectAdd(&args, "S:id", memory, NULL) < 0 ||
        !(info = virshRwpCall(ctl, dom, "query-rwp", &args)))
        return false;

    for (i = 0; i < virJSONValueArraySize(info); i++) {
        g_autoptr(GPtrArray) lines = g_ptr_array_new_with_free_func(g_free);
        struct virshRwpLinesData data = { lines, "" };

        if (virJSONValueObjectForeachKeyValue(virJSONValueArrayGet(info, i),
                                              virshRwpLines, &data) < 0)
            return false;

        g_ptr_array_sort(lines, virshRwpCompare);
        for (j = 0; j < lines->len; j++)
            vshPrint(ctl, "%s\n", (char *) lines->pdata[j]);
        vshPrint(ctl, "\n");
    }

    return true;
}


/*
 * "domrwpmap" command
 */
static const vshCmdInfo info_domrwpmap = {
    .help = N_("state and age of the pages of guest memory"),
    .desc = N_("Prints runs of pages of guest memory with their state, and their age in cycles of tracking."),
};

static const vshCmdOptDef opts_domrwpmap[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_ACTIVE),
    VIRSH_RWP_OPT_MEMORY,
    VIRSH_RWP_OPT("offset", VSH_OT_INT, N_("first byte, default 0")),
    VIRSH_RWP_OPT("length", VSH_OT_INT, N_("number of bytes, default all")),
    VIRSH_RWP_OPT("min-age", VSH_OT_INT, N_("leave out younger pages")),
    VIRSH_RWP_OPT("granularity", VSH_OT_INT, N_("bytes of a unit, default one page")),
    {.name = NULL}
};

static bool
cmdDomrwpmap(vshControl *ctl, const vshCmd *cmd)
{
    g_autoptr(virshDomain) dom = NULL;
    g_autoptr(virJSONValue) args = NULL;
    unsigned long long end = 0;
    unsigned long long next = 0;
    bool more = true;

    if (!(dom = virshCommandOptDomain(ctl, cmd, NULL)) ||
        !(args = virshRwpArgs(ctl, cmd, dom)))
        return false;

    if (virJSONValueObjectGetNumberUlong(args, "length", &end) == 0) {
        ignore_value(virJSONValueObjectGetNumberUlong(args, "offset", &next));
        end += next;
    }

    vshPrint(ctl, "%-18s %-14s %-10s %s\n", _("Offset"), _("Length"), _("State"), _("Age"));

    while (more) {
        g_autoptr(virJSONValue) map = NULL;
        virJSONValue *rest = virJSONValueCopy(args);
        virJSONValue *runs;
        size_t i;

        map = virshRwpCall(ctl, dom, "query-rwp-map", &rest);
        virJSONValueFree(rest);
        if (!map || !(runs = virJSONValueObjectGetArray(map, "runs")))
            return false;

        for (i = 0; i < virJSONValueArraySize(runs); i++) {
            virJSONValue *run = virJSONValueArrayGet(runs, i);
            unsigned long long offset = 0;
            unsigned long long length = 0;
            g_autofree char *age = NULL;
            virJSONValue *ageval = virJSONValueObjectGet(run, "age");

            ignore_value(virJSONValueObjectGetNumberUlong(run, "offset", &offset));
            ignore_value(virJSONValueObjectGetNumberUlong(run, "length", &length));
            if (ageval)
                age = virJSONValueToString(ageval, false);

            vshPrint(ctl, "0x%016llx %-14llu %-10s %s\n", offset, length,
                     virJSONValueObjectGetString(run, "state"), age ? age : "-");
        }

        /* go on behind what was printed */
        if ((more = virJSONValueObjectGetNumberUlong(map, "next", &next) == 0)) {
            ignore_value(virJSONValueObjectRemoveKey(args, "offset", NULL));
            ignore_value(virJSONValueObjectAppendNumberUlong(args, "offset", next));
            if (end > 0) {
                ignore_value(virJSONValueObjectRemoveKey(args, "length", NULL));
                ignore_value(virJSONValueObjectAppendNumberUlong(args, "length", end - next));
            }
        }
    }

    return true;
}


/*
 * "domrwp-start" and "domrwp-stop" commands
 */
static const vshCmdInfo info_domrwp_start = {
    .help = N_("start to track accesses to guest memory"),
    .desc = N_("Starts to detect which pages of guest memory are accessed."),
};

static const vshCmdOptDef opts_domrwp_start[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_ACTIVE),
    VIRSH_RWP_OPT_MEMORY,
    VIRSH_RWP_OPT("interval", VSH_OT_INT, N_("length of a cycle in milliseconds")),
    {.name = NULL}
};

static const vshCmdInfo info_domrwp_stop = {
    .help = N_("stop to track accesses to guest memory"),
    .desc = N_("Stops the detection of accesses. Evicted pages stay evicted."),
};

static const vshCmdOptDef opts_domrwp_stop[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_ACTIVE),
    VIRSH_RWP_OPT_MEMORY,
    {.name = NULL}
};

static bool
virshRwpSimple(vshControl *ctl, const vshCmd *cmd, const char *name)
{
    g_autoptr(virshDomain) dom = NULL;
    g_autoptr(virJSONValue) args = NULL;
    g_autoptr(virJSONValue) reply = NULL;

    return (dom = virshCommandOptDomain(ctl, cmd, NULL)) &&
        (args = virshRwpArgs(ctl, cmd, dom)) &&
        (reply = virshRwpCall(ctl, dom, name, &args));
}

static bool
cmdDomrwpStart(vshControl *ctl, const vshCmd *cmd)
{
    return virshRwpSimple(ctl, cmd, "rwp-track-start");
}

static bool
cmdDomrwpStop(vshControl *ctl, const vshCmd *cmd)
{
    return virshRwpSimple(ctl, cmd, "rwp-track-stop");
}


/*
 * "domrwp-evict" and "domrwp-fetch" commands
 */
static const vshCmdInfo info_domrwp_evict = {
    .help = N_("move pages of guest memory to the store"),
    .desc = N_("Starts a job that moves pages to the store and frees their memory."),
};

static const vshCmdOptDef opts_domrwp_evict[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_ACTIVE),
    VIRSH_RWP_OPT_MEMORY,
    VIRSH_RWP_OPT("min-age", VSH_OT_INT, N_("evict pages of at least this age")),
    VIRSH_RWP_OPT("bytes", VSH_OT_INT, N_("evict about that much, the oldest pages first")),
    VIRSH_RWP_OPT("offset", VSH_OT_INT, N_("evict a range: its first byte")),
    VIRSH_RWP_OPT("length", VSH_OT_INT, N_("evict a range: its number of bytes")),
    VIRSH_RWP_OPT("speed", VSH_OT_INT, N_("limit, in bytes per second")),
    VIRSH_RWP_OPT("wait", VSH_OT_BOOL, N_("wait for the job and print its progress")),
    {.name = NULL}
};

static const vshCmdInfo info_domrwp_fetch = {
    .help = N_("bring evicted pages of guest memory back"),
    .desc = N_("Starts a job that reads evicted pages from the store."),
};

static const vshCmdOptDef opts_domrwp_fetch[] = {
    VIRSH_COMMON_OPT_DOMAIN_FULL(VIR_CONNECT_LIST_DOMAINS_ACTIVE),
    VIRSH_RWP_OPT_MEMORY,
    VIRSH_RWP_OPT("offset", VSH_OT_INT, N_("fetch a range: its first byte")),
    VIRSH_RWP_OPT("length", VSH_OT_INT, N_("fetch a range: its number of bytes")),
    VIRSH_RWP_OPT("speed", VSH_OT_INT, N_("limit, in bytes per second")),
    VIRSH_RWP_OPT("wait", VSH_OT_BOOL, N_("wait for the job and print its progress")),
    {.name = NULL}
};

/* Calls a command that takes a job. */
static int
virshRwpJobCall(vshControl *ctl,
                virDomainPtr dom,
                const char *name,
                const char *job)
{
    g_autoptr(virJSONValue) args = NULL;
    g_autoptr(virJSONValue) reply = NULL;

    if (virJSONValueObjectAdd(&args, "s:id", job, NULL) < 0 ||
        !(reply = virshRwpCall(ctl, dom, name, &args)))
        return -1;

    return 0;
}

static virJSONValue *
virshRwpJobFind(virJSONValue *jobs,
                const char *id)
{
    size_t i;

    for (i = 0; i < virJSONValueArraySize(jobs); i++) {
        virJSONValue *job = virJSONValueArrayGet(jobs, i);

        if (STREQ_NULLABLE(virJSONValueObjectGetString(job, "id"), id))
            return job;
    }

    return NULL;
}

static bool
virshRwpJobConcluded(virJSONValue *job)
{
    return STREQ_NULLABLE(virJSONValueObjectGetString(job, "status"), "concluded");
}

/* Dismisses the job of an earlier --wait that did not live to do so, because
 * virsh was killed or lost its connection: it has the ID of the next one. */
static int
virshRwpJobDismissOld(vshControl *ctl,
                      virDomainPtr dom,
                      const char *id)
{
    g_autoptr(virJSONValue) jobs = virshRwpCall(ctl, dom, "query-jobs", NULL);
    virJSONValue *job;

    if (!jobs)
        return -1;

    if (!(job = virshRwpJobFind(jobs, id)))
        return 0;

    if (!virshRwpJobConcluded(job)) {
        vshError(ctl, _("job '%1$s' is still running: wait for its end, or cancel it with the QMP command 'job-cancel'"),
                 id);
        return -1;
    }

    return virshRwpJobCall(ctl, dom, "job-dismiss", id);
}

static volatile sig_atomic_t virshRwpInterrupted;

#ifndef WIN32
static void
virshRwpInterrupt(int sig G_GNUC_UNUSED)
{
    virshRwpInterrupted = 1;
}
#endif

/* 100 % is left to the job that has concluded */
static void
virshRwpJobProgress(const char *label,
                    unsigned long long current,
                    unsigned long long total)
{
    double part = total > 0 ? (double) MIN(current, total) / total : 0;

    fflush(stdout);
    fprintf(stderr, "\r%s: [%5.2f %%]", label, MIN(part * 100, 99.99));
    fflush(stderr);
}

/* Waits until the job has concluded; an interrupt cancels it. */
static bool
virshRwpJobWait(vshControl *ctl,
                virDomainPtr dom,
                const char *id,
                const char *label)
{
    bool cancelled = false;

    while (true) {
        g_autoptr(virJSONValue) jobs = virshRwpCall(ctl, dom, "query-jobs", NULL);
        virJSONValue *job;
        unsigned long long current = 0;
        unsigned long long total = 0;
        const char *error;

        if (!jobs)
            return false;

        if (!(job = virshRwpJobFind(jobs, id))) {
            vshError(ctl, _("job '%1$s' has disappeared"), id);
            return false;
        }

        if (virshRwpJobConcluded(job)) {
            error = virJSONValueObjectGetString(job, "error");
            if (!error && !cancelled)
                fprintf(stderr, "\r%s: [100.00 %%]", label);
            fprintf(stderr, "\n");
            if (error)
                vshError(ctl, _("%1$s failed: %2$s"), label, error);
            return virshRwpJobCall(ctl, dom, "job-dismiss", id) == 0 &&
                !error && !cancelled;
        }

        ignore_value(virJSONValueObjectGetNumberUlong(job, "current-progress", &current));
        ignore_value(virJSONValueObjectGetNumberUlong(job, "total-progress", &total));
        virshRwpJobProgress(label, current, total);

        if (virshRwpInterrupted && !cancelled) {
            cancelled = true;
            ignore_value(virshRwpJobCall(ctl, dom, "job-cancel", id));
        }

        g_usleep(100 * 1000);
    }
}

static bool
virshRwpJob(vshControl *ctl,
            const vshCmd *cmd,
            const char *name,
            const char *label)
{
    g_autoptr(virshDomain) dom = NULL;
    g_autoptr(virJSONValue) args = NULL;
    g_autoptr(virJSONValue) reply = NULL;
    g_autoptr(virJSONValue) range = NULL;
    g_autoptr(virJSONValue) ranges = virJSONValueNewArray();
    g_autofree char *id = NULL;
    unsigned long long offset = 0;
    unsigned long long length = 0;
    bool wait = vshCommandOptBool(cmd, "wait");
    bool ret;
#ifndef WIN32
    struct sigaction interrupt = { .sa_handler = virshRwpInterrupt };
    struct sigaction before;
#endif

    VSH_REQUIRE_OPTION("offset", "length");
    VSH_REQUIRE_OPTION("length", "offset");

    if (!(dom = virshCommandOptDomain(ctl, cmd, NULL)) ||
        !(args = virshRwpArgs(ctl, cmd, dom)))
        return false;

    if (virJSONValueObjectGetNumberUlong(args, "offset", &offset) == 0 &&
        virJSONValueObjectGetNumberUlong(args, "length", &length) == 0 &&
        (virJSONValueObjectRemoveKey(args, "offset", NULL) < 0 ||
         virJSONValueObjectRemoveKey(args, "length", NULL) < 0 ||
         virJSONValueObjectAdd(&range, "U:offset", offset, "U:length", length, NULL) < 0 ||
         virJSONValueArrayAppend(ranges, &range) < 0))
        return false;

    id = g_strdup_printf("%s-%s", name, virJSONValueObjectGetString(args, "id"));
    if (virJSONValueArraySize(ranges) == 0)
        g_clear_pointer(&ranges, virJSONValueFree);
    if (virJSONValueObjectAdd(&args,
                              "s:job-id", id,
                              "A:ranges", &ranges,
                              "b:auto-dismiss", !wait,
                              NULL) < 0 ||
        virshRwpJobDismissOld(ctl, dom, id) < 0)
        return false;

#ifndef WIN32
    virshRwpInterrupted = 0;
    sigemptyset(&interrupt.sa_mask);
    sigaction(SIGINT, &interrupt, &before);
#endif
    ret = (reply = virshRwpCall(ctl, dom, name, &args)) &&
        (!wait || virshRwpJobWait(ctl, dom, id, label));
#ifndef WIN32
    sigaction(SIGINT, &before, NULL);
#endif

    return ret;
}

static bool
cmdDomrwpEvict(vshControl *ctl, const vshCmd *cmd)
{
    return virshRwpJob(ctl, cmd, "rwp-evict", _("Eviction"));
}

static bool
cmdDomrwpFetch(vshControl *ctl, const vshCmd *cmd)
{
    return virshRwpJob(ctl, cmd, "rwp-fetch", _("Fetch"));
}

const vshCmdDef rwpCmds[] = {
    {.name = "domrwpinfo",
     .handler = cmdDomrwpinfo,
     .opts = opts_domrwpinfo,
     .info = &info_domrwpinfo,
     .flags = 0
    },
    {.name = "domrwpmap",
     .handler = cmdDomrwpmap,
     .opts = opts_domrwpmap,
     .info = &info_domrwpmap,
     .flags = 0
    },
    {.name = "domrwp-start",
     .handler = cmdDomrwpStart,
     .opts = opts_domrwp_start,
     .info = &info_domrwp_start,
     .flags = 0
    },
    {.name = "domrwp-stop",
     .handler = cmdDomrwpStop,
     .opts = opts_domrwp_stop,
     .info = &info_domrwp_stop,
     .flags = 0
    },
    {.name = "domrwp-evict",
     .handler = cmdDomrwpEvict,
     .opts = opts_domrwp_evict,
     .info = &info_domrwp_evict,
     .flags = 0
    },
    {.name = "domrwp-fetch",
     .handler = cmdDomrwpFetch,
     .opts = opts_domrwp_fetch,
     .info = &info_domrwp_fetch,
     .flags = 0
    },
    {.name = NULL}
};
