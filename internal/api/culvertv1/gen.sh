#!/bin/sh
# Regenerates the Go code of this folder. protoc is Debian's protobuf-compiler
# (3.21); the plugins are pinned as tools in go.mod.
# Files are compiled by their path from the folder above, since a bare
# "record.proto" is another module's in the registry of one process.
set -eu
cd "$(dirname "$0")"
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install connectrpc.com/connect/v2/cmd/protoc-gen-connect-go google.golang.org/protobuf/cmd/protoc-gen-go
PATH=$bin:$PATH protoc -I.. --go_out=. --go_opt=module=culvert/internal/api/culvertv1 \
  --connect-go_out=. --connect-go_opt=module=culvert/internal/api/culvertv1 \
  culvertv1/resource.proto culvertv1/record.proto culvertv1/agent.proto culvertv1/api.proto
