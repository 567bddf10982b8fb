#!/usr/bin/env bash
# Every test on the shipped code: the README's command, and the core with each
# of its features alone.
set -euo pipefail
cd "$(dirname "$0")/.."

. ci/matrix.bash
compared plain cargo test

# Doctests run as models and so need `std`, as does `cargo test` itself; the
# core is built without it all the same.
cargo test --package uaio-core --no-default-features --lib --tests
for features in alloc table portable-atomic; do
    cargo test --package uaio-core --no-default-features --lib --tests --features "$features"
done
cargo test --package uaio-core --features table,portable-atomic
