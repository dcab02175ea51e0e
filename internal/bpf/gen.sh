#!/bin/sh
# Compiles the programs of this folder and makes the Go code that embeds them.
# clang and llvm-strip are Debian's (clang-14, llvm-14, with libbpf-dev for the
# headers); bpf2go is pinned as a tool in go.mod.
set -eu
cd "$(dirname "$0")"
GOPACKAGE=bpf go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types \
  -cflags "-O2 -g -Wall -Werror -mcpu=v3 -I/usr/include/$(uname -m)-linux-gnu" culvert culvert.bpf.c
