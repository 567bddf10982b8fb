#!/usr/bin/env bash
# Packs the crates that are published and builds each from its archive alone.
# Together, since the engine needs a core that no registry has yet; as they stand,
# committed or not.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo package --package uaio-core --package uaio --allow-dirty "$@"
