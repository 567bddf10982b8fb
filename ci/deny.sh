#!/usr/bin/env bash
# Licences, advisories, duplicates and sources of all dependencies: deny.toml.
# Needs `cargo install --locked cargo-deny` and the network, so .ci/run leaves
# it out; run it when Cargo.lock changes.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo deny --workspace check "$@"
