#!/usr/bin/env bash
# Nothing but the facade, core/src/sync/, names an atomic, a fence or an
# UnsafeCell of core or std. What does is never seen by a checker.
#
# clippy's disallowed-types resolves paths, globs and renames, so it is exact
# wherever the facade's types are types of their own: under loom, under shuttle,
# and in a native build with portable-atomic, which sees what the checkers
# compile out. The engine may not hold even the facade's, which are core's own
# in a plain build: what needs an atomic belongs in the core. (Its tests may: what their
# threads share is no protocol.)
#
# Nor does the engine hand over anything by a lock, a channel or a parked thread: that is
# the core's, where it is modelled. Each lock it has is on the list below, with what it is
# for; an entry that nothing needs is refused as well. A search by text is enough: however
# it is imported, it is named. (In comments it may be: what is in a doctest is not run by
# the engine.)
#
# A file that allows the lint must be on the list below; and a search by text
# finds full paths in doctests and in code that is compiled for other targets.
#
# With --self-test: plants violations in a scratch copy and demands red.
set -euo pipefail
cd "$(dirname "$0")/.."

# Who may say `allow(clippy::disallowed_types)`, and why.
exempt=(
    core/src/sync/ # the facade itself
)

# Where the engine may name Mutex, RwLock, Condvar, mpsc and park, and why.
declare -A locks=(
    # One consumer at a time, who may be any thread.
    [engine/src/asyncfd.rs]='Mutex'
    # Who makes one more context; where a new thread finds its callbacks.
    [engine/src/callback.rs]='Mutex'
    # Who leads, and what is due when: never held by who sleeps or calls. The driver
    # waits for it to be needed; who waits for a future of the core's is parked.
    [engine/src/drive.rs]='Mutex Condvar park'
    # What descriptor a number is of: around epoll_ctl, which decides by that.
    [engine/src/epoll.rs]='Mutex'
    # Which contexts have to forget the file when it is closed; and whose turn it is at
    # one that cannot be tried without blocking.
    [engine/src/file.rs]='Mutex'
    # Whom a signal may be sent to: until a worker takes itself off the list, after a call
    # that waited for somebody else.
    [engine/src/interrupt.rs]='Mutex'
    # Between looking whether an eventfd can be added to, and that.
    [engine/src/notify.rs]='Mutex'
    # The handles of threads, for who has started one and for who joins it; and who ends
    # the context, for the others that want to. Neither by who pushes or takes.
    [engine/src/pool.rs]='Mutex'
    # `lock`, for all of them.
    [engine/src/sys.rs]='Mutex'
)

lints=(-A warnings -A clippy::all -A clippy::restriction
    -D clippy::disallowed_types -D clippy::disallowed_methods)

clippy() {
    cargo clippy --quiet "$@" -- "${lints[@]}"
}

search() {
    local found
    found=$(grep -rnE "$1" --include='*.rs' core engine models benches |
        grep -vFf <(printf '%s\n' "${exempt[@]}")) || return 0
    printf '%s\n' "$found"
    return 1
}

# Every lock in the engine is on the list, and the list has no other.
hand_offs() {
    local failed=0 file line word words
    declare -A unused
    for file in "${!locks[@]}"; do
        for word in ${locks[$file]}; do
            unused["$file: $word"]=1
        done
    done
    while IFS=: read -r file line word; do
        word=${word/#unpark/park} word=${word/%_timeout/}
        words=" ${locks[$file]-} "
        unset "unused[$file: $word]"
        if [[ $words != *" $word "* ]]; then
            echo "$file:$line: $word: not on the list"
            failed=1
        fi
    done < <(find engine/src -name '*.rs' | while read -r file; do
        sed 's:^ *//.*::' "$file" |
            { grep -noE '\b(Mutex|RwLock|Condvar|mpsc|(un)?park(_timeout)?)\b' || true; } |
            sed "s|^|$file:|"
    done)
    for word in "${!unused[@]}"; do
        echo "$word: on the list, and not used"
        failed=1
    done
    return "$failed"
}

check() {
    local failed=0
    hand_offs || failed=1
    search 'disallowed_(types|methods)' || failed=1
    search '\b(core|std)::(sync::atomic|cell::(\{[^}]*)?UnsafeCell)\b' || failed=1
    local all=(--all-targets --workspace --features uaio-core/table)
    clippy "${all[@]}" --exclude uaio --features uaio-core/portable-atomic || failed=1
    clippy --lib --examples --package uaio --no-deps || failed=1
    RUSTFLAGS='--cfg loom' clippy "${all[@]}" || failed=1
    RUSTFLAGS='--cfg shuttle' clippy "${all[@]}" || failed=1
    return "$failed"
}

# plant NAME FILE TEXT [COMMAND...]: with TEXT at the end of FILE, COMMAND (all
# checks by default) must fail and name the file.
plant() {
    local name=$1 file=$2 text=$3 output
    shift 3
    cp "$file" "$scratch/kept"
    printf '\n%s\n' "$text" >>"$file"
    if output=$("${@:-check}" 2>&1); then
        echo "facade: NOT found: $name in $file"
        missed=$((missed + 1))
    elif ! grep -qF "$file" <<<"$output"; then
        echo "facade: failed, but not over $file: $name"
        printf '%s\n' "$output"
        missed=$((missed + 1))
    else
        echo "facade: found: $name in $file"
    fi
    mv "$scratch/kept" "$file"
}

self_test() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    tar -c --exclude=./target --exclude=./.git . | tar -x -C "$scratch"
    export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
    cd "$scratch"
    missed=0
    native=(clippy --all-targets --workspace --exclude uaio
        --features uaio-core/table,uaio-core/portable-atomic)
    engine=(clippy --lib --examples --package uaio --no-deps)

    local plain='use std::sync::atomic::AtomicBool;'
    local brace='use std::sync::{Arc, atomic::{AtomicBool}};'
    local path='fn planted() { std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst); }'
    local renamed='use std::{cell::{self as c}, sync as s}; fn planted(_: c::UnsafeCell<u8>, _: s::atomic::AtomicU8) {}'
    local ours='use uaio_core::sync::atomic::AtomicBool;'
    local compiled_out="#[cfg(not(any(loom, shuttle)))] mod planted { $brace }"
    local loom_only="#[cfg(loom)] mod planted { $brace }"
    local allowed="#[allow(clippy::disallowed_types)] mod planted { $brace }"

    # clippy alone, without the search, whatever the form.
    for text in "$plain" "$brace" "$path" "$renamed" "$compiled_out"; do
        plant "$text" core/src/life.rs "$text" "${native[@]}"
        plant "$text" engine/src/lib.rs "mod planted_here { $text }" "${engine[@]}"
    done
    plant "$ours" engine/src/lib.rs "mod planted_here { $ours }" "${engine[@]}"
    # Everything.
    plant "$brace" core/src/ring.rs "$brace"
    plant "$brace" engine/src/lib.rs "mod planted_here { $brace }"
    plant "$brace" core/tests/context.rs "mod planted_here { $brace }"
    plant "$loom_only" core/src/ring.rs "$loom_only"
    plant "$allowed" core/src/ring.rs "$allowed"
    plant "a doctest" core/src/ring.rs '/// ```
/// let _ = std::sync::atomic::AtomicBool::new(false);
/// ```
struct Planted;'

    # One of each that is not on the list; also where another one is.
    for text in 'use std::sync::Mutex;' 'use std::sync::RwLock;' 'use std::sync::Condvar;' \
        'use std::sync::mpsc;' 'use std::thread::park;' \
        'fn planted(it: std::thread::Thread) { it.unpark(); }' \
        'fn planted() { std::thread::park_timeout(std::time::Duration::ZERO); }' \
        'use std::sync as s; static PLANTED: s::Mutex<u8> = s::Mutex::new(0);'; do
        plant "$text" engine/src/lib.rs "mod planted_here { $text }" hand_offs
    done
    plant 'a Condvar beside a Mutex' engine/src/pool.rs 'use std::sync::Condvar;' hand_offs
    plant 'a lock' engine/src/lib.rs 'use std::sync::RwLock;'
    # One that is on the list, and not used any more.
    sed -i 's/Mutex/Mutes/' engine/src/notify.rs
    plant 'an entry for nothing' engine/src/notify.rs '' hand_offs

    [ "$missed" = 0 ]
}

case "${1-}" in
'') check && echo 'facade: nothing goes round it' ;;
--self-test) self_test ;;
*) echo "usage: $0 [--self-test]" >&2 && exit 2 ;;
esac
