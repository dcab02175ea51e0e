#!/bin/sh
# Figures of the cores: time and memory of one change and of whole tables.
set -eu
cd "$(dirname "$0")/.."
CGO_ENABLED=0 "${GO:-go}" test -run '^$' -bench . -benchmem ./internal/...
