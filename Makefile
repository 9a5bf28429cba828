# stoker: as few targets as will do. Run `make help` for what they do.
SHELL := /bin/bash
GO    ?= go
PKGS  := ./...
export PATH := $(CURDIR)/bin:$(shell $(GO) env GOPATH)/bin:$(PATH)
# Versions come from the commit; a tree without git builds too.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Tests that assert less under the race detector, which changes memory and takes time.
NORACE := Alloc|ThatNobodyWaitsFor|TestMemoryIsBounded|TestDeltaInTightSpace
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: help need build dev race test test-long lint demo demo-slurm bench bench-scale spank clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

need: ## install what build and tests need (Debian as root; else name it)
	@scripts/need

build: dev ## bin/stoker, bin/stokerd, bin/stoker-dev
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/stoker ./cmd/stokerd

dev: ## bin/stoker-dev alone (embeds a Temporal server: minutes the first time)
	@[ -x bin/stoker-dev ] || echo 'building bin/stoker-dev: it embeds a Temporal server and an S3 server; the first build takes 3 to 6 minutes on 2 cores'
	cd cmd/stoker-dev && $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o ../../bin/stoker-dev .

test: need build ## every test, real Redis, S3, FUSE and Temporal; race detector on but for whole clusters (internal/e2e)
	$(GO) test -race -timeout 40m $(filter-out %/e2e %/e2e/slurm,$(shell $(GO) list $(PKGS)))
	$(GO) test -run '$(NORACE)' ./cache ./fuse ./fuse/tree ./internal/worker
	cd cmd/stoker-dev && $(GO) test ./...
	$(GO) test -p 1 -timeout 90m ./internal/e2e ./internal/e2e/slurm

test-long: test race ## the slow ones too, those on Ceph, and daemons with the race detector
	STOKER_TEST_LONG=1 scripts/need
	STOKER_TEST_LONG=1 $(GO) test -race -timeout 50m -count=1 $(PKGS)
	STOKER_BIN=$(CURDIR)/bin-race $(GO) test -timeout 30m -count=1 -run '$(RACED)' ./internal/e2e

# Daemons under load and killed; not those that measure time or memory.
RACED := ^(TestReadsUnderRandomSettings|TestViewsAndDataSurviveAKilledWorker)$$
race: dev ## bin-race/stoker, bin-race/stokerd: with the race detector, for STOKER_BIN
	$(GO) build -race -trimpath -o bin-race/ ./cmd/stoker ./cmd/stokerd
	ln -f bin/stoker-dev bin-race/

lint: need ## gofmt, vet, staticcheck, workflowcheck, the import rules
	@fmt=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$fmt" ] || { echo "gofmt: $$fmt"; exit 1; }
	$(GO) vet $(PKGS)
	staticcheck $(PKGS)
	workflowcheck ./workflows
	cd cmd/stoker-dev && $(GO) vet ./... && staticcheck ./...
	$(GO) test ./internal/arch

demo: need build ## the whole of it on this machine: preload, train, report
	bin/stoker-dev demo

demo-slurm: need build ## the same with a private Slurm of two nodes: three jobs, a timeline (root)
	@set -o pipefail; STOKER_DEMO=$(CURDIR)/bin/slurm-timeline.svg $(GO) test -count=1 -run 'TestSlurm/Timeline' -v ./internal/e2e/slurm | grep -v '^ *\(---\|===\)'

bench: need build ## views, preloads, layouts and readers against disk and a lean client; hot paths (docs/performance.md, .csv, .svg)
	scripts/bench-start
	{ $(GO) test -run '^$$' -bench . -benchtime 5x -timeout 60m ./internal/e2e; \
	  $(GO) test -run '^$$' -bench . -benchmem $(filter-out %/e2e %/e2e/slurm,$(shell $(GO) list $(PKGS))); } | \
	  $(GO) run ./scripts/benchtable -csv docs/performance.csv -svg docs/performance.svg

bench-scale: need build ## plan, reserve and count a billion files on a thousand workers (simulated data; some minutes)
	STOKER_SCALE_FILES=$${STOKER_SCALE_FILES:-1000000000} $(GO) test -timeout 60m -count=1 -v -run 'TestScale$$' ./internal/e2e

SPANK := bin/spank_stoker.so
spank: ## bin/spank_stoker.so, Slurm's option --dataset (needs the headers of your Slurm)
	@[ -e /usr/include/slurm/spank.h ] || { echo 'spank: slurm/spank.h is missing: install libslurm-dev (Debian), slurm-devel (RPM), or set CFLAGS=-I where it is'; [ -n "$(CFLAGS)" ]; }
	mkdir -p $(dir $(SPANK))
	$(CC) -std=gnu11 -O2 -Wall -Wextra -Werror $(CFLAGS) -fPIC -shared -o $(SPANK) deploy/slurm/spank/stoker.c

clean: ## remove what was built
	rm -rf bin bin-race
