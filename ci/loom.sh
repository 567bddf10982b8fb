#!/usr/bin/env bash
# Every model, exhaustively, by loom. Other arguments go to the test runner:
# `ci/loom.sh request::` runs the models of one protocol.
#
# By itself, on loom as it is published: each model without a bound, and with at
# most three preemptions in both orders of its roles; and the doctests as models.
#
# With --sound, on loom with models/loom-VERSION.patch, which skips no execution:
# one order, and a bound only where the model has one. The checker's own test then
# demands that it misses nothing. loom's source comes from cargo's registry copy,
# all else is built in a scratch copy: neither Cargo.lock nor the work tree change.
#
# Without other arguments, what was explored must be what models/MATRIX.md says.
set -euo pipefail
cd "$(dirname "$0")/.."

# The other packages have nothing to run under a checker. That they build there, too,
# ci/lint.sh sees.
published() {
    RUSTFLAGS='--cfg loom' cargo test --release --package uaio-core --package uaio-models -- "$@"
}

sound() (
    target=${CARGO_TARGET_DIR:-$PWD/target}/sound
    . ci/sound.bash
    patched_loom "$target"
    copy_workspace "$target/workspace"
    cd "$target/workspace"

    # As a path dependency loom's own warnings would be shown.
    CARGO_TARGET_DIR=$target/target RUSTFLAGS='--cfg loom -Awarnings' UAIO_SOUND=1 cargo test \
        --config "patch.crates-io.loom.path='$target/loom'" \
        --release --package uaio-models --lib -- "$@"
)

run=(published) checker=loom
case "${1-}" in
-h | --help) echo "usage: $0 [--sound] [FILTER...]" && exit ;;
--sound) run=(sound) checker=loom-sound && shift ;;
esac
. ci/matrix.bash
[ $# -gt 0 ] || run=(compared "$checker" "${run[@]}")
"${run[@]}" "$@"
