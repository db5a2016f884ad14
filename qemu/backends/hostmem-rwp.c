/*
 * Host memory backend whose working set is tracked and whose cold pages
 * can be evicted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The object owns the properties and the memory; all else is in
 * system/rwp/.  The properties are fixed once the memory exists.
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/madvise.h"
#include "qemu/memfd.h"
#include "qemu/module.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-types-qom.h"
#include "qom/object_interfaces.h"
#include "system/hostmem.h"
#include "system/replay.h"
#include "system/rwp.h"
#include "system/system.h"
#include "system/xen.h"
#include "exec/memory.h"

#define TYPE_MEMORY_BACKEND_RWP "memory-backend-rwp"

OBJECT_DECLARE_SIMPLE_TYPE(HostMemoryBackendRwp, MEMORY_BACKEND_RWP)

struct HostMemoryBackendRwp {
    HostMemoryBackend parent_obj;

    /* Properties */
    RwpTracker tracker;
    RwpBacking backing;
    RwpThp thp;
    bool hugetlb;
    uint64_t hugetlbsize;
    uint32_t interval;
    uint64_t readahead;
    char *store;
    bool checksum;
    uint32_t max_fetches;

    /* From completion on */
    RwpState *state;
};

/* The methods of the parent that are overridden below */
static void (*parent_complete)(UserCreatable *uc, Error **errp);
static bool (*parent_can_be_deleted)(UserCreatable *uc);

#define DEFAULT_INTERVAL 10000
#define DEFAULT_READAHEAD (512 * 1024)
#define DEFAULT_MAX_FETCHES 32

static bool check_properties(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(backend);
    const char *reason = NULL;

    if (!backend->size) {
        error_setg(errp, "can't create backend with size 0");
        return false;
    }
    if (!QEMU_IS_ALIGNED(backend->size, qemu_real_host_page_size())) {
        error_setg(errp, "property 'size' must be a multiple of the page "
                   "size, %zu", qemu_real_host_page_size());
        return false;
    }
    if (m->hugetlbsize && !m->hugetlb) {
        error_setg(errp, "property 'hugetlbsize' needs hugetlb=on");
        return false;
    }

    if (backend->guest_memfd) {
        reason = "confidential guests: the host cannot access their memory";
    } else if (backend->merge) {
        reason = "merge=on: merged pages cannot be evicted";
    } else if (should_mlock(mlock_state)) {
        reason = "-overcommit mem-lock: locked memory cannot be evicted";
    } else if (xen_enabled()) {
        reason = "Xen";
    } else if (replay_mode != REPLAY_MODE_NONE) {
        reason = "record and replay";
    }
    if (reason) {
        error_setg(errp, "memory-backend-rwp cannot be used with %s", reason);
        return false;
    }
    return true;
}

static bool alloc_memfd(HostMemoryBackend *backend, const char *name,
                        uint32_t ram_flags, Error **errp)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(backend);
    int fd = qemu_memfd_create(TYPE_MEMORY_BACKEND_RWP, backend->size,
                               m->hugetlb, m->hugetlbsize,
                               F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL,
                               errp);

    if (fd < 0) {
        return false;
    }
    backend->aligned = true;
    /* Pages are removed from the file, so it must be what the guest sees */
    backend->share = true;
    return memory_region_init_ram_from_fd(&backend->mr, OBJECT(backend), name,
                                          backend->size,
                                          ram_flags | RAM_SHARED, fd, 0,
                                          errp);
}

static bool alloc_anonymous(HostMemoryBackend *backend, const char *name,
                            uint32_t ram_flags, Error **errp)
{
    return memory_region_init_ram_flags_nomigrate(&backend->mr,
                                                  OBJECT(backend), name,
                                                  backend->size,
                                                  ram_flags | RAM_PRIVATE,
                                                  errp);
}

static bool rwp_backend_memory_alloc(HostMemoryBackend *backend, Error **errp)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(backend);
    g_autofree char *name = host_memory_backend_get_name(backend);
    uint32_t ram_flags = backend->reserve ? 0 : RAM_NORESERVE;
    bool chosen = m->tracker == RWP_TRACKER_AUTO;
    bool ok;

    if (!check_properties(backend, errp) ||
        !rwp_select(&m->tracker, &m->backing, backend->share, m->hugetlb,
                    errp)) {
        return false;
    }
    if (chosen) {
        info_report("memory-backend-rwp '%s': tracker=%s, backing=%s", name,
                    RwpTracker_str(m->tracker), RwpBacking_str(m->backing));
    }
    if (m->backing == RWP_BACKING_ANONYMOUS) {
        ok = alloc_anonymous(backend, name, ram_flags, errp);
    } else {
        /* The kernel neither arms nor punches a part of a huge page */
        m->thp = RWP_THP_OFF;
        ok = alloc_memfd(backend, name, ram_flags, errp);
    }
    if (ok && m->thp == RWP_THP_OFF) {
        /* Before preallocation: a huge page of it would stay one */
        qemu_madvise(memory_region_get_ram_ptr(&backend->mr), backend->size,
                     QEMU_MADV_NOHUGEPAGE);
    }
    return ok;
}

static void rwp_backend_complete(UserCreatable *uc, Error **errp)
{
    ERRP_GUARD();
    HostMemoryBackend *backend = MEMORY_BACKEND(uc);
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(uc);
    RwpConfig config = {
        .interval = m->interval,
        .readahead = m->readahead,
        .store = m->store,
        .checksum = m->checksum,
        .max_fetches = m->max_fetches,
    };
    void *ptr;

    parent_complete(uc, errp);
    if (*errp) {
        return;
    }

    ptr = memory_region_get_ram_ptr(&backend->mr);
    qemu_madvise(ptr, backend->size, QEMU_MADV_UNMERGEABLE);

    config.id = object_get_canonical_path_component(OBJECT(uc));
    config.tracker = m->tracker;
    config.backing = m->backing;
    config.thp = m->thp;
    m->state = rwp_state_new(backend->mr.ram_block, &config, errp);
    if (m->state) {
        /* Children go before instance_finalize() is called */
        object_ref(OBJECT(&backend->mr));
    }
}

static bool rwp_backend_can_be_deleted(UserCreatable *uc)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(uc);

    return parent_can_be_deleted(uc) &&
           !(m->state && rwp_state_busy(m->state));
}

/* For all setters: whether the property can still be changed */
static bool can_set(Object *obj, const char *name, Error **errp)
{
    if (host_memory_backend_mr_inited(MEMORY_BACKEND(obj))) {
        error_setg(errp, "cannot change property '%s' of %s", name,
                   object_get_typename(obj));
        return false;
    }
    return true;
}

static int rwp_backend_get_tracker(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_RWP(obj)->tracker;
}

static void rwp_backend_set_tracker(Object *obj, int value, Error **errp)
{
    if (can_set(obj, "tracker", errp)) {
        MEMORY_BACKEND_RWP(obj)->tracker = value;
    }
}

static int rwp_backend_get_backing(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_RWP(obj)->backing;
}

static void rwp_backend_set_backing(Object *obj, int value, Error **errp)
{
    if (can_set(obj, "backing", errp)) {
        MEMORY_BACKEND_RWP(obj)->backing = value;
    }
}

static int rwp_backend_get_thp(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_RWP(obj)->thp;
}

static void rwp_backend_set_thp(Object *obj, int value, Error **errp)
{
    if (can_set(obj, "thp", errp)) {
        MEMORY_BACKEND_RWP(obj)->thp = value;
    }
}

static bool rwp_backend_get_hugetlb(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_RWP(obj)->hugetlb;
}

static void rwp_backend_set_hugetlb(Object *obj, bool value, Error **errp)
{
    if (can_set(obj, "hugetlb", errp)) {
        MEMORY_BACKEND_RWP(obj)->hugetlb = value;
    }
}

static void rwp_backend_get_hugetlbsize(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    uint64_t value = MEMORY_BACKEND_RWP(obj)->hugetlbsize;

    visit_type_size(v, name, &value, errp);
}

static void rwp_backend_set_hugetlbsize(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    uint64_t value;

    if (!can_set(obj, name, errp) || !visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (value && (!is_power_of_2(value) ||
                  value < qemu_real_host_page_size())) {
        error_setg(errp, "property 'hugetlbsize' must be a size of huge "
                   "pages that the host has, such as 2M");
        return;
    }
    MEMORY_BACKEND_RWP(obj)->hugetlbsize = value;
}

static void rwp_backend_get_interval(Object *obj, Visitor *v,
                                     const char *name, void *opaque,
                                     Error **errp)
{
    uint32_t value = MEMORY_BACKEND_RWP(obj)->interval;

    visit_type_uint32(v, name, &value, errp);
}

/* Sets *@value to what is visited, if that is from @min to @max @unit */
static void set_within(Object *obj, Visitor *v, const char *name,
                       uint32_t min, uint32_t max, const char *unit,
                       uint32_t *value, Error **errp)
{
    uint32_t wanted;

    if (!can_set(obj, name, errp) ||
        !visit_type_uint32(v, name, &wanted, errp)) {
        return;
    }
    if (wanted < min || wanted > max) {
        error_setg(errp, "property '%s' must be from %" PRIu32 " to %" PRIu32
                   "%s", name, min, max, unit);
        return;
    }
    *value = wanted;
}

static void rwp_backend_set_interval(Object *obj, Visitor *v,
                                     const char *name, void *opaque,
                                     Error **errp)
{
    set_within(obj, v, name, RWP_INTERVAL_MIN, RWP_INTERVAL_MAX, " ms",
               &MEMORY_BACKEND_RWP(obj)->interval, errp);
}

static void rwp_backend_get_readahead(Object *obj, Visitor *v,
                                      const char *name, void *opaque,
                                      Error **errp)
{
    uint64_t value = MEMORY_BACKEND_RWP(obj)->readahead;

    visit_type_size(v, name, &value, errp);
}

static void rwp_backend_set_readahead(Object *obj, Visitor *v,
                                      const char *name, void *opaque,
                                      Error **errp)
{
    uint64_t value;

    if (!can_set(obj, name, errp) || !visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (value > RWP_READAHEAD_MAX) {
        error_setg(errp, "property 'readahead' must be at most %d bytes",
                   RWP_READAHEAD_MAX);
        return;
    }
    MEMORY_BACKEND_RWP(obj)->readahead = value;
}

static char *rwp_backend_get_store(Object *obj, Error **errp)
{
    return g_strdup(MEMORY_BACKEND_RWP(obj)->store);
}

static void rwp_backend_set_store(Object *obj, const char *value,
                                  Error **errp)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(obj);

    if (can_set(obj, "store", errp)) {
        g_free(m->store);
        m->store = g_strdup(value);
    }
}

static bool rwp_backend_get_checksum(Object *obj, Error **errp)
{
    return MEMORY_BACKEND_RWP(obj)->checksum;
}

static void rwp_backend_set_checksum(Object *obj, bool value, Error **errp)
{
    if (!can_set(obj, "checksum", errp)) {
        return;
    }
    if (value && !rwp_checksums_available()) {
        error_setg(errp, "property 'checksum' cannot be on: QEMU was built "
                   "without libxxhash");
        return;
    }
    MEMORY_BACKEND_RWP(obj)->checksum = value;
}

static void rwp_backend_get_max_fetches(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    uint32_t value = MEMORY_BACKEND_RWP(obj)->max_fetches;

    visit_type_uint32(v, name, &value, errp);
}

static void rwp_backend_set_max_fetches(Object *obj, Visitor *v,
                                        const char *name, void *opaque,
                                        Error **errp)
{
    set_within(obj, v, name, 1, RWP_FETCHES_MAX, "",
               &MEMORY_BACKEND_RWP(obj)->max_fetches, errp);
}

static void rwp_backend_instance_init(Object *obj)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(obj);

    MEMORY_BACKEND(obj)->merge = false;
    m->thp = RWP_THP_WHOLE;
    m->interval = DEFAULT_INTERVAL;
    m->readahead = DEFAULT_READAHEAD;
    m->checksum = rwp_checksums_available();
    m->max_fetches = DEFAULT_MAX_FETCHES;
}

static void rwp_backend_instance_finalize(Object *obj)
{
    HostMemoryBackendRwp *m = MEMORY_BACKEND_RWP(obj);

    rwp_stats_retire(m->state);
    if (m->state) {
        rwp_state_free(m->state);
        object_unref(OBJECT(&MEMORY_BACKEND(obj)->mr));
    }
    g_free(m->store);
}

static void add_properties(ObjectClass *oc)
{
    object_class_property_add_enum(oc, "tracker", "RwpTracker",
                                   &RwpTracker_lookup,
                                   rwp_backend_get_tracker,
                                   rwp_backend_set_tracker);
    object_class_property_set_description(oc, "tracker",
        "How accesses are found (auto/rwp/zap/none)");
    object_class_property_add_enum(oc, "backing", "RwpBacking",
                                   &RwpBacking_lookup,
                                   rwp_backend_get_backing,
                                   rwp_backend_set_backing);
    object_class_property_set_description(oc, "backing",
        "Kind of memory (auto/anonymous/memfd)");
    object_class_property_add_enum(oc, "thp", "RwpThp", &RwpThp_lookup,
                                   rwp_backend_get_thp, rwp_backend_set_thp);
    object_class_property_set_description(oc, "thp",
        "Transparent huge pages of anonymous memory (off/whole/split)");
    object_class_property_add_bool(oc, "hugetlb", rwp_backend_get_hugetlb,
                                   rwp_backend_set_hugetlb);
    object_class_property_set_description(oc, "hugetlb", "Use huge pages");
    object_class_property_add(oc, "hugetlbsize", "size",
                              rwp_backend_get_hugetlbsize,
                              rwp_backend_set_hugetlbsize, NULL, NULL);
    object_class_property_set_description(oc, "hugetlbsize",
        "Huge pages size (ex: 2M, 1G)");
    object_class_property_add(oc, "interval", "uint32",
                              rwp_backend_get_interval,
                              rwp_backend_set_interval, NULL, NULL);
    object_class_property_set_description(oc, "interval",
        "Length of a tracking cycle in milliseconds");
    object_class_property_add(oc, "readahead", "size",
                              rwp_backend_get_readahead,
                              rwp_backend_set_readahead, NULL, NULL);
    object_class_property_set_description(oc, "readahead",
        "Bytes to read ahead at most when evicted pages are touched");
    object_class_property_add_str(oc, "store", rwp_backend_get_store,
                                  rwp_backend_set_store);
    object_class_property_set_description(oc, "store",
        "Node name of the block node for evicted pages");
    object_class_property_add_bool(oc, "checksum", rwp_backend_get_checksum,
                                   rwp_backend_set_checksum);
    object_class_property_set_description(oc, "checksum",
        "Notice if the store returns other content than it was given");
    object_class_property_add(oc, "max-fetches", "uint32",
                              rwp_backend_get_max_fetches,
                              rwp_backend_set_max_fetches, NULL, NULL);
    object_class_property_set_description(oc, "max-fetches",
        "Reads of the store for touched pages at a time");
}

static void rwp_backend_class_init(ObjectClass *oc, void *data)
{
    HostMemoryBackendClass *bc = MEMORY_BACKEND_CLASS(oc);
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    bc->alloc = rwp_backend_memory_alloc;
    parent_complete = ucc->complete;
    ucc->complete = rwp_backend_complete;
    parent_can_be_deleted = ucc->can_be_deleted;
    ucc->can_be_deleted = rwp_backend_can_be_deleted;
    add_properties(oc);
}

static const TypeInfo rwp_backend_info = {
    .name = TYPE_MEMORY_BACKEND_RWP,
    .parent = TYPE_MEMORY_BACKEND,
    .instance_init = rwp_backend_instance_init,
    .instance_finalize = rwp_backend_instance_finalize,
    .class_init = rwp_backend_class_init,
    .instance_size = sizeof(HostMemoryBackendRwp),
};

static void register_types(void)
{
    type_register_static(&rwp_backend_info);
}

type_init(register_types);
