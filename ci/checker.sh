#!/usr/bin/env bash
# The sound checker against brute force: UAIO_PROGRAMS (1000) random programs of each
# shape, by UAIO_SEED (the date); it may miss no outcome. Then how many published loom
# misses of the first 50: a known figure, and no failure.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
-h | --help) echo "usage: [UAIO_SEED=SEED] [UAIO_PROGRAMS=N] $0" && exit ;;
esac

test=checker::every_sequentially_consistent_outcome_is_visited
export UAIO_SEED=${UAIO_SEED:-$(date +%Y%m%d)}
UAIO_PROGRAMS=${UAIO_PROGRAMS:-1000}
[ "$UAIO_PROGRAMS" -gt 0 ] || { echo 'checker: UAIO_PROGRAMS is a number above zero' >&2 && exit 2; }
log=${CARGO_TARGET_DIR:-$PWD/target}/checker.log
mkdir -p "${log%/*}"
UAIO_PROGRAMS=$UAIO_PROGRAMS ci/loom.sh --sound --exact "$test" | tee "$log"
grep -q '^test result: ok. 1 passed' "$log" || { echo "checker: $test did not run" >&2 && exit 1; }
echo 'checker: published loom, for comparison'
UAIO_PROGRAMS=50 ci/loom.sh --exact "$test"
