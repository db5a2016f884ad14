#include "qemu/osdep.h"
#include "rwp-rig.h"
static void test_x(const RigKind *kind)
{
    Rig *rig = rig_new(kind, 1);

    rig_fill(0, 10);
    rig_evict_now(rig, 0, 10);
    rig_expect(rig, 0, 10, RWP_PAGE_EVICTED);
    rig_check(0, 10);
    rig_free(rig);
}
static void add_tests(void)
{
    rig_add("x", test_x);
}
int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
