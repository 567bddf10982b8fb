#!/usr/bin/env bash
# Every model under shuttle's random and PCT schedules. Arguments go to the test
# runner: `ci/shuttle.sh ring::` runs the models of one protocol. A failing
# schedule is saved below target/shuttle/; UAIO_REPLAY=FILE runs one model with
# it again, and UAIO_SEED=SEED repeats a run. Without arguments, the models that ran
# must be those of models/MATRIX.md.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: [UAIO_REPLAY=FILE | UAIO_SEED=SEED] $0 [FILTER...]" && exit ;;
esac

# The other packages have nothing to run under a checker.
packages=(--package uaio-core --package uaio-models)
run=(env RUSTFLAGS='--cfg shuttle' cargo test --release "${packages[@]}" --)
. ci/matrix.bash
[ $# -gt 0 ] || run=(compared shuttle "${run[@]}")
"${run[@]}" "$@"
