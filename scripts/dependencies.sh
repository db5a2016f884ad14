# SPDX-License-Identifier: GPL-2.0-or-later
#
# What is missing on this machine, and its installation; for the configure
# scripts, which source this file in the top directory. They set
#
#   TOOLS    lines of a tool and the Debian package that has it
#   MODULES  lines of a pkg-config module and the package
#   FILES    lines of a file and the package; may be unset
# shellcheck shell=bash

die() {
    printf '%s: %s\n' "${0#./}" "$*" >&2
    exit 1
}

say() {
    printf '== %s\n' "$*"
}

# Prints the Debian packages of what is missing, one a line.
missing_dependencies() {
    local name package
    while read -r name package; do
        [ -z "$name" ] || command -v "$name" >/dev/null || echo "$package"
    done <<< "$TOOLS"
    while read -r name package; do
        [ -z "$name" ] || pkg-config --exists "$name" 2>/dev/null ||
            echo "$package"
    done <<< "$MODULES"
    while read -r name package; do
        [ -z "$name" ] || [ -e "$name" ] || [ -e "${name%.gpg}.pgp" ] ||
            echo "$package"
    done <<< "${FILES:-}"
}

distribution() {
    # shellcheck source=/dev/null
    (. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_CODENAME:-}")
}

install_packages() {
    local id codename wanted=("$@") rest=() backports=() package
    read -r id codename <<< "$(distribution)"
    [ "$id" = debian ] ||
        die "--install-deps knows Debian only; install: ${wanted[*]}"
    [ "$(id -u)" = 0 ] ||
        die "--install-deps needs root; or install: ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    for package in "${wanted[@]}"; do
        # Debian 12 itself has an older meson and no pycotap.
        case $codename/$package in
        bookworm/meson|bookworm/python3-pycotap) backports+=("$package") ;;
        *) rest+=("$package") ;;
        esac
    done
    if [ ${#rest[@]} -gt 0 ]; then
        say "Installing ${rest[*]}"
        install_with apt-get "${rest[@]}"
    fi
    if [ ${#backports[@]} -gt 0 ]; then
        say "Installing ${backports[*]} from bookworm-backports"
        install_with scripts/private-apt --system --deb=bookworm-backports \
            -- "${backports[@]/%//bookworm-backports}"
    fi
}

# install_with COMMAND... PACKAGE...: the packages lists may be absent or old.
install_with() {
    local command=() log=build/apt.log
    while [ $# -gt 0 ]; do
        case $1 in
        apt-get|scripts/*|--*) command+=("$1"); shift ;;
        *) break ;;
        esac
    done
    mkdir -p build
    : > "$log"
    if ! "${command[@]}" update >> "$log" 2>&1 ||
       ! "${command[@]}" install -y --no-install-recommends "$@" \
             >> "$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "apt-get could not install $* (all of its output: $log)"
    fi
}
