# SPDX-License-Identifier: GPL-2.0-or-later
#
# libvirt that knows memory-backend-rwp. It is no part of "make": it takes
# minutes, and only "make libvirt" and its tests need it.
#
#   make libvirt                  the daemon, the QEMU driver and virsh
#   make check-libvirt            libvirt's own tests, then a guest under it
#   make refresh-libvirt-patches  commits in build/src/libvirt -> the queue
#
# The programs run from the build directory:
#   build/libvirt/run build/libvirt/src/libvirtd
#   build/libvirt/run build/libvirt/tools/virsh -c qemu:///system

# configure says what is missing, or installs it like the top configure does.
LIBVIRT_CONFIGURE = libvirt/configure $(shell [ "$$(id -u)" = 0 ] && \
	grep -qs '^ID=debian$$' /etc/os-release && echo --install-deps) \
	$(if $(LIBVIRT_SOURCE),--libvirt-source=$(LIBVIRT_SOURCE))

# The same objects serve every clone: where a build lies does not count.
LIBVIRT_CCACHE = CCACHE_BASEDIR=$(TOP) CCACHE_NOHASHDIR=1

.PHONY: libvirt libvirt-tree refresh-libvirt-patches

libvirt-tree: configured
	@$(LIBVIRT_CONFIGURE)

libvirt: libvirt-tree
	@$(LIBVIRT_CCACHE) ninja -C $(B)/libvirt -j$(JOBS)

refresh-libvirt-patches:
	@$(PYTHON) scripts/tree refresh libvirt

SUITES += libvirt
check check-libvirt: libvirt
check-libvirt: qemu-system

clean: libvirt-clean
.PHONY: libvirt-clean
libvirt-clean:
	rm -rf $(B)/libvirt

define HELP_PARTS +=
make libvirt          build libvirt with our patches, in build/libvirt
                      (LIBVIRT_SOURCE=DIR|TARBALL: not Debian's source)
make refresh-libvirt-patches
                      turn commits in build/src/libvirt into libvirt/patches

endef
