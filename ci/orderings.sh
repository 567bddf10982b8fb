#!/usr/bin/env bash
# Weakens the orderings of core/src, its facade's own apart (no model runs what that
# ships), one at a time, by each legal step, deletes each fence, and takes each
# condition that is marked `// Re-check:` for false, then for true. Some model must
# then fail, on loom with our patch. `ci/orderings.sh FILE` does one file, say ring.rs.
#
# What no model can notice stands in models/orderings.txt, each with the argument:
# *equivalent*, or *invisible* to loom though C11 requires it. An entry without a
# mutant, or whose mutant is killed, is an error; so is an atomic operation whose
# ordering is not written out.
#
# Two mutants at a time, each in a copy of the workspace, built in place.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: $0 [FILE]" && exit ;;
esac

target=${CARGO_TARGET_DIR:-$PWD/target}/orderings
. ci/sound.bash
patched_loom "$target"
copy_workspace "$target/1"
copy_workspace "$target/2"

cargo build --quiet --release --package uaio-models --bin orderings
tool=${CARGO_TARGET_DIR:-$PWD/target}/release/orderings
export RUSTFLAGS='--cfg loom -Awarnings'
quick_builds
exec "$tool" core/src models/orderings.txt "$@" -- "$target/1" "$target/2" -- \
    test --config "patch.crates-io.loom.path='$target/loom'" \
    --release --package uaio-models --lib
