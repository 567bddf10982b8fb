#!/usr/bin/env bash
# Four producers, and rings that are full or just being replaced, in a release build:
# of RESULTS results, or 10,000,000, none is lost, doubled, torn or out of order; a
# tenth of that as whole requests. Prints how often rings were full, replaced and
# drained; UAIO_TEST_SEED=SEED repeats the random choices of a run that printed it.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-10000000}" in
-h | --help) echo "usage: [UAIO_TEST_SEED=SEED] $0 [RESULTS]" && exit ;;
'' | *[!0-9]*) echo "usage: $0 [RESULTS]" >&2 && exit 2 ;;
esac

UAIO_STRESS_RESULTS=${1-10000000} \
    cargo test --release --package uaio --test asyncfd_stress -- --nocapture
