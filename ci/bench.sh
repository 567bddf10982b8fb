#!/usr/bin/env bash
# Every bench once, unmeasured: that they run, and that each reader reads what it should.
# With --measure: the gates, on an otherwise idle machine (benches/benches/ratios.rs);
# each ratio, its gate and whether it passes. docs/bench.md says what they mean.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
'') cargo bench --package uaio-benches -- --test ;;
--measure) cargo bench --package uaio-benches --bench ratios ;;
*) echo "usage: $0 [--measure]" >&2 && exit 2 ;;
esac
