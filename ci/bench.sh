#!/usr/bin/env bash
# Every bench once, unmeasured: that they run. With --measure: the gate, on an
# otherwise idle machine (benches/benches/ratios.rs).
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
'') cargo bench --package uaio-benches -- --test ;;
--measure) cargo bench --package uaio-benches --bench ratios ;;
*) echo "usage: $0 [--measure]" >&2 && exit 2 ;;
esac
