#!/usr/bin/env bash
# A crate that embeds the core runs its own models, and uaio's scenarios on its own
# waker and source: natively, under loom and under shuttle, by RUSTFLAGS alone.
# Arguments go to the test runner.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/embed
cd models/embedder

direct=$(cargo tree --locked --quiet --target all --depth 1 --prefix none)
if grep -E '^(loom|shuttle) ' <<<"$direct"; then
    echo 'embed: an embedder needs no checker of its own' >&2
    exit 1
fi
for checker in '' '--cfg loom' '--cfg shuttle'; do
    echo "embed: ${checker:-natively}"
    RUSTFLAGS=$checker cargo test --quiet --locked --release --tests -- "$@"
done

cargo fmt --check
facade=() # Exact where the facade's types are its own.
for checker in '' '--cfg loom' '--cfg shuttle'; do
    RUSTFLAGS=$checker cargo clippy --quiet --locked --all-targets -- -D warnings "${facade[@]}"
    facade=(-D clippy::disallowed_types -D clippy::disallowed_methods)
done
echo 'embed: clean'
