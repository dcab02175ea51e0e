#!/bin/sh
# Figures: first of the cores alone (time and memory of one change and of whole
# tables), then of whole labs, as JSON lines and a table. What follows -- goes
# to the second: scripts/bench.sh -- -samples 11 -only appear
set -eu
cd "$(dirname "$0")/.."
[ "${1:-}" = -- ] && shift
CGO_ENABLED=0 "${GO:-go}" test -run '^$' -bench . -benchmem ./internal/...
mkdir -p bin
CGO_ENABLED=0 "${GO:-go}" build -o bin/bench ./test/bench
exec bin/bench -culvert bin/culvert "$@"
