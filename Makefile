# Culvert. `make help` lists the targets; docs/architecture.md is the way in.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unversioned)
COUNT   ?= 10
SEEDS   ?= 100000

# go.mod names the Go version; an older go (1.21 or later) fetches it.
export GOTOOLCHAIN ?= auto

.DEFAULT_GOAL := build
.PHONY: build demo quick check test bench sim mutants stories clean help go ring

build: go  ## bin/culvert: one static binary
	@CGO_ENABLED=0 $(GO) build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/culvert ./cmd/culvert

demo: build  ## three hosts on this machine, two tenants, a migration (root)
	@./scripts/demo.sh

quick: ring  ## tests that need nothing: values, cores, codecs, model kernel (no root)
	@bin/ring pure

check: ring  ## format, vet, staticcheck, generated code, house rules (no root)
	@bin/ring check

test: build ring  ## everything, ring by ring, with a verdict on the last line (root)
	@bin/ring pure check kernel sim stories

bench: build ring  ## figures as JSON lines and a table (root)
	@./scripts/bench.sh

sim: ring  ## a longer simulation: make sim SEEDS=100000
	@bin/ring -seeds $(SEEDS) sim

mutants: ring  ## seed known defects one by one; each must turn something red
	@bin/ring -seeds 500 mutants

stories: build ring  ## the stories again and again: make stories COUNT=10 (root)
	@bin/ring -count $(COUNT) stories

clean:  ## what make has built
	@rm -rf bin

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1\t/p' Makefile | expand -t 10

go:
	@GO='$(GO)' ./scripts/need-go.sh

ring: go
	@$(GO) build -o bin/ring ./internal/house/ring
