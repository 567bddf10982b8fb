#!/usr/bin/env bash
# Format, clippy natively and under both checkers, rustdoc: all without warnings.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check

for checker in '' '--cfg loom' '--cfg shuttle'; do
    echo "lint: clippy ${checker:-natively}"
    RUSTFLAGS=$checker cargo clippy --quiet --workspace --all-targets -- -D warnings
done
for features in '' alloc std table portable-atomic; do
    echo "lint: clippy, core with ${features:-no features}"
    cargo clippy --quiet --package uaio-core --no-default-features --features "$features" -- -D warnings
done

echo 'lint: rustdoc'
RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps --features uaio-core/table

for script in ci/*.sh ci/*.bash .ci/run; do
    bash -n "$script"
done
echo 'lint: clean'
