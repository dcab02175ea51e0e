#!/bin/sh
# Regenerates the Go code of this folder. protoc is Debian's protobuf-compiler
# (3.21); the plugins are pinned as tools in go.mod.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install connectrpc.com/connect/v2/cmd/protoc-gen-connect-go google.golang.org/protobuf/cmd/protoc-gen-go
PATH=$bin:$PATH protoc -I. --go_out=. --go_opt=module=culvert/internal/api/culvertv1 \
  --connect-go_out=. --connect-go_opt=module=culvert/internal/api/culvertv1 \
  resource.proto record.proto agent.proto api.proto
