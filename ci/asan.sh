#!/usr/bin/env bash
# Code that shares memory with its user, or lends it, under AddressSanitizer: the core's
# asyncfd while somebody scribbles over its rings, for SECONDS or for 20, and its other
# tests; and 100,000 futures that are dropped at random moments, while workers use their
# buffers.
#
# First it shows that it sees something: with an error planted (ci/planted/), by which
# a ring's memory is given back under who writes it, it has to find a use after free.
# Fails when the sanitizer is not to be had. UAIO_TEST_SEED=SEED repeats a run.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-20}" in
-h | --help) echo "usage: [UAIO_TEST_SEED=SEED] $0 [SECONDS]" && exit ;;
'' | *[!0-9]*) echo "usage: $0 [SECONDS]" >&2 && exit 2 ;;
esac
seconds=${1-20}

# The host's, named: then cargo builds what runs at build time without it.
host=$(rustc --version --verbose | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-$PWD/target}/asan
# The sanitizer is an unstable option, which a stable compiler takes for this.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address'
export CARGO_TARGET_DIR=$target/build

under_asan() {
    cargo test --target "$host" --release "$@"
}

. ci/sound.bash
planted=$target/planted
copy_workspace "$planted"
(
    cd "$planted"
    for patch in ci/planted/*.patch; do
        GIT_CEILING_DIRECTORIES=$target git apply "$patch"
        echo "asan: $patch, which it has to find"
        # It ends with the first error. Who comes late finds no ring any more, instead of
        # one that was freed: then once more.
        for attempt in {1..20}; do
            if UAIO_SCRIBBLE_MS=60000 CARGO_TARGET_DIR=$planted/target \
                under_asan --package uaio-core --test scribble >"$target/log" 2>&1; then
                cat "$target/log"
                echo "asan: $patch was not found" >&2
                exit 1
            fi
            if grep 'AddressSanitizer: heap-use-after-free' "$target/log"; then
                break
            fi
            if [ "$attempt" = 20 ] || ! grep -q 'AddressSanitizer: SEGV' "$target/log"; then
                cat "$target/log"
                echo "asan: $patch failed otherwise" >&2
                exit 1
            fi
        done
        GIT_CEILING_DIRECTORIES=$target git apply --reverse "$patch"
    done
)

UAIO_SCRIBBLE_MS=$((seconds * 1000)) \
    under_asan --package uaio-core --test scribble --test asyncfd -- --nocapture
under_asan --package uaio --test futures -- --nocapture
