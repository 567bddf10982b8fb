#!/usr/bin/env bash
# The engine with a thousand descriptors at once, in a release build, for SECONDS or
# for 60: every request completes once and tells the truth, and nothing is left behind.
# Over loopback only. Prints how often each outcome occurred; UAIO_TEST_SEED=SEED
# repeats the random choices of a run that printed it.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-60}" in
-h | --help) echo "usage: [UAIO_TEST_SEED=SEED] $0 [SECONDS]" && exit ;;
'' | *[!0-9]*) echo "usage: $0 [SECONDS]" >&2 && exit 2 ;;
esac

UAIO_SOAK_SECONDS=${1-60} \
    cargo test --release --package uaio --test soak -- --nocapture
