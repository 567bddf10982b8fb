#!/usr/bin/env bash
# Writes models/MATRIX.md: runs every model under loom, published and patched, under
# shuttle and with plain threads, and takes what they report. For when a model came,
# went or changed; that the file is not stale, `cargo test`, ci/loom.sh and
# ci/shuttle.sh check.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: $0" && exit ;;
esac

target=${CARGO_TARGET_DIR:-$PWD/target}/matrix
reports=()

# collect CHECKER COMMAND...
collect() {
    reports+=("$target/$1.tsv")
    rm -f "$target/$1.tsv"
    echo "matrix: $1"
    UAIO_MATRIX=write UAIO_REPORT=$target/$1.tsv "${@:2}"
}

mkdir -p "$target"
models=(cargo test --quiet --release --package uaio-models --lib)
collect loom env RUSTFLAGS='--cfg loom' "${models[@]}"
collect loom-sound ci/loom.sh --sound
collect shuttle env RUSTFLAGS='--cfg shuttle' "${models[@]}"
collect plain "${models[@]}"
cargo run --quiet --package uaio-models --bin matrix -- write "${reports[@]}"
