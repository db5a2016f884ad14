#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# scripts/tree on a source of three files: overlay, patch queue, refresh, and
# each way in which it must refuse rather than destroy work.

set -uo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
number=0
output=
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=A \
       GIT_COMMITTER_EMAIL=a@b

# check NAME COMMAND...: the command must succeed.
check() {
    local name=$1
    shift
    number=$((number + 1))
    if output=$("$@" 2>&1); then
        echo "ok $number $name"
    else
        echo "not ok $number $name"
        printf '%s\n' "$output" | sed 's/^/# /'
    fi
}

# refuses NAME TEXT COMMAND...: it must fail and say so.
refuses() {
    local name=$1 text=$2
    shift 2
    number=$((number + 1))
    if output=$("$@" 2>&1) || [[ $output != *"$text"* ]]; then
        echo "not ok $number $name"
        printf '%s\n' "$output" | sed 's/^/# /'
    else
        echo "ok $number $name"
    fi
}

commit() {
    git -C "$tree" commit -q -a "$@"
}

edit() {
    sed -i "$1" "$tree/$2"
}

holds() {
    grep -q "$1" "$2"
}

same() {
    [ "$1" = "$2" ]
}

gone() {
    [ ! -e "$1" ] && [ ! -L "$1" ]
}

repo=$scratch/repo
tree=$repo/build/src/qemu
patches=$repo/qemu/patches
mkdir -p "$repo/qemu/new" "$scratch/source/dir"
cp -r "$top/scripts" "$repo/scripts"
seq 1 20 > "$scratch/source/a"
seq 1 20 > "$scratch/source/dir/b"
echo 10.0.99 > "$scratch/source/VERSION"
echo 'int x;' > "$repo/qemu/new/x.c"
t=$repo/scripts/tree

check "create takes a directory" "$t" create qemu --from="$scratch/source"
check "update with no patches" "$t" update qemu
check "our file is a link" test -L "$tree/new/x.c"
check "the tree is clean" same "" "$(git -C "$tree" status --porcelain)"

edit 's/^10$/ten/' a
refuses "refresh with uncommitted edits" "not committed" "$t" refresh qemu
commit -m 'a: spell ten

Because.' --author='C D <c@d>'
edit 's/^5$/five/' dir/b
commit -m 'dir: spell five'
check "refresh" "$t" refresh qemu
check "series" same "0001-a-spell-ten.patch 0002-dir-spell-five.patch" \
    "$(paste -sd' ' "$patches/series")"
check "author and body are kept" \
    same "From: C D <c@d>|Subject: a: spell ten||Because." \
    "$(head -n 4 "$patches/0001-a-spell-ten.patch" | paste -sd'|')"
before=$(cat "$patches"/*)
"$t" refresh qemu > /dev/null
check "refresh again changes nothing" same "$before" "$(cat "$patches"/*)"

edit 's/^ten$/TEN/' a
commit --fixup=:/spell.ten
stamp=$(stat -c %Y%Z "$tree/a")
check "refresh folds a fixup in" "$t" refresh qemu
check "two patches remain" same 2 "$(wc -l < "$patches/series")"
check "the fixup is in its patch" holds '^+TEN' "$patches/0001-a-spell-ten.patch"
check "no file was written" same "$stamp" "$(stat -c %Y%Z "$tree/a")"

# The queue changes under the tree, as after a pull.
sed -i 's/^+TEN/+Ten/' "$patches/0001-a-spell-ten.patch"
stamp=$(stat -c %Y%Z "$tree/dir/b")
refuses "refresh with a changed queue" "run make first" "$t" refresh qemu
echo local >> "$tree/a"
refuses "update over an edit" "not committed" "$t" update qemu
check "the edit is still there" holds local "$tree/a"
git -C "$tree" checkout -q a
check "update follows the queue" "$t" update qemu
check "the tree has the new text" holds '^Ten' "$tree/a"
check "other files are not written" same "$stamp" \
    "$(stat -c %Y%Z "$tree/dir/b")"

edit 's/^7$/seven/' a
commit -m 'a: spell seven'
sed -i 's/^+Ten/+tEN/' "$patches/0001-a-spell-ten.patch"
refuses "update over a commit" "not exported" "$t" update qemu
check "the commit is still there" holds seven "$tree/a"
sed -i 's/^+tEN/+Ten/' "$patches/0001-a-spell-ten.patch"
check "update once the queue is back" "$t" update qemu
check "refresh exports it" "$t" refresh qemu

cp -r "$patches" "$scratch/saved"
sed -i 's/^ 9$/ nine/' "$patches/0001-a-spell-ten.patch"
refuses "a patch that needs fuzz" "does not apply" "$t" update qemu
check "the tree is as before" holds '^Ten' "$tree/a"
rm -rf "$patches" && cp -r "$scratch/saved" "$patches"
touch "$patches/stray.patch"
refuses "a patch outside the series" "not in the series" "$t" update qemu
rm "$patches/stray.patch"

echo 'int y;' > "$repo/qemu/new/y.c"
rm "$repo/qemu/new/x.c"
check "update with a new and a removed file" "$t" update qemu
check "the new file is linked" test -L "$tree/new/y.c"
check "the removed one is gone" gone "$tree/new/x.c"
cp "$tree/a" "$repo/qemu/a"
refuses "a file of ours that exists upstream" "change that file by a patch" \
    "$t" update qemu
rm "$repo/qemu/a"
echo z > "$tree/z"
git -C "$tree" add z
commit -m 'add z'
refuses "a patch that adds a file" "new files belong" "$t" refresh qemu
echo "1..$number"
