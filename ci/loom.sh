#!/usr/bin/env bash
# Every model, exhaustively, by loom; and the doctests as models. Arguments go to
# the test runner: `ci/loom.sh request::` runs the models of one protocol.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: $0 [FILTER...]" && exit ;;
esac

RUSTFLAGS='--cfg loom' exec cargo test --release -- "$@"
