# Fairhook's commands. Each does its own set-up, as root or not, on a machine
# that has Go, git and make, and writes to this tree and to Go's caches only
# (installing a C compiler, Postgres programs, curl, Node or Python, where they
# are missing, is the exception, and needs root).

GO        ?= go
# What "make run" passes on to "fairhook dev", and "make bench" to "fairhook bench".
ARGS      ?=
# What "make test" passes on to "go test", for example TESTFLAGS='-run Submit -v'.
TESTFLAGS ?=
# Both modules of the workspace.
PACKAGES  ?= ./... ./pkg/client/...
# A module and workspace of its own: the tests of what is in deployments.
CHECK     := deployments/check
# The version that release builds report; Go's own record of the commit otherwise.
VERSION   ?=

GOFUMPT     := $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2

ifneq ($(VERSION),)
LDFLAGS := -ldflags '-X github.com/fairhook/fairhook/pkg/daemon.version=$(VERSION)'
endif

# Go wants to record the commit, and refuses to build where git refuses to tell
# it: in a tree that another user owns, or that is not a clone.
ifeq ($(shell git rev-parse HEAD 2>/dev/null),)
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)
endif

.DEFAULT_GOAL := help
.PHONY: help run build test bench lint fmt docs clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Start everything on a private Postgres, send an event and stay up (Ctrl-C stops it).
	@bin/fairhook dev $(ARGS)

build: ## Build the programs into bin/.
	$(GO) build $(LDFLAGS) -o bin/ ./cmd/...

test: ## Run every test, with the race detector where there is a race to find.
	@.ci/compiler
	@.ci/interpreters
	@.ci/tools
	@$(GO) run ./.ci/withpostgres
	CGO_ENABLED=1 $(GO) test -race -timeout 15m $(TESTFLAGS) $(PACKAGES)
ifeq ($(origin PACKAGES),file)
	cd $(CHECK) && $(GO) test -timeout 15m $(TESTFLAGS) ./...
endif

bench: build ## Measure how much is accepted and delivered, for example ARGS='--only deliver'.
	@bin/fairhook bench $(ARGS)

lint: ## Check format, vet and staticcheck.
	@files=$$($(GOFUMPT) -l .) && if [ -n "$$files" ]; then \
		echo "not formatted (make fmt does it):"; echo "$$files"; exit 1; fi
	$(GO) vet $(PACKAGES) ./.ci/withpostgres
	$(STATICCHECK) $(PACKAGES) ./.ci/withpostgres
	cd $(CHECK) && $(GO) vet ./... && $(STATICCHECK) ./...

fmt: ## Format the code.
	@$(GOFUMPT) -l -w .

docs: ## Write the generated parts of the documentation anew.
	$(GO) test . -run TestConfigurationReference -count=1 -update
	cd $(CHECK) && $(GO) test . -run TestTheSchemaOfTheValuesKnowsTheSettings -count=1 -update

clean: ## Remove what was built.
	rm -rf bin
