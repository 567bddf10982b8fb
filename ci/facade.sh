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

check() {
    local failed=0
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

    [ "$missed" = 0 ]
}

case "${1-}" in
'') check && echo 'facade: nothing goes round it' ;;
--self-test) self_test ;;
*) echo "usage: $0 [--self-test]" >&2 && exit 2 ;;
esac
