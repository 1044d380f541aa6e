# Lateen. `make up` starts the mesh, `make down` removes it, `make test` runs everything.
SHELL := /bin/bash
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
BIN := $(CARGO_TARGET_DIR)/release
# Where tests and benchmarks find the programs, and the stock Envoy that is the second engine.
export LATEEN_BIN := $(BIN)
export LATEEN_TOOLS ?= /var/cache/lateen/tools
export LATEEN_ENVOY_PATH ?= $(LATEEN_TOOLS)/envoy-1.40.0/envoy

PROGRAMS := -p lateen-cli -p lateen-control -p lateen-agent -p lateen-samples

.PHONY: help build up down test unit e2e kubernetes soak bench lint fmt
help: ## What can be made
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

build: ## Build the programs (release)
	@scripts/install-tools.sh build
	cargo build --release --locked $(PROGRAMS)

up: build ## Build and start the mesh with the demo
	@$(BIN)/lateen up

down: ## Stop the mesh and leave nothing behind
	@if [ -x $(BIN)/lateen ]; then $(BIN)/lateen down; else echo "nothing built, nothing to stop"; fi

unit: ## Tests that need no cluster
	@scripts/install-tools.sh test
	cargo test --locked --workspace --exclude lateen-e2e

e2e: build ## The labs and faults on the embedded cluster, on both engines
	@scripts/install-tools.sh test
	cargo test --release --locked -p lateen-e2e --lib --test mesh

kubernetes: build ## The control plane and both proxies against a stock kube-apiserver, which is built where it is missing
	@scripts/install-tools.sh kubernetes
	cargo test --release --locked -p lateen-e2e --test kubernetes

test: unit e2e ## Everything

soak: build ## Certificates of ten seconds under load for ten minutes (LATEEN_SOAK_SECONDS), on both engines
	@scripts/install-tools.sh test
	LATEEN_SOAK_SECONDS=$${LATEEN_SOAK_SECONDS:-600} cargo test --release --locked -p lateen-e2e --test mesh -- certificates_change_under_load

bench: ## One hop HTTP/1.1 beside nginx, HAProxy, Envoy, one of HTTP/2; the cost of filters; thousands of services; a Sidecar's saving; changes at 500 proxies; a second network; 500 machines
	@scripts/install-tools.sh build bench
	cargo build --profile dist --locked -p lateen-agent
	LATEEN_BIN=$(CARGO_TARGET_DIR)/dist python3 bench/onehop.py
	LATEEN_BIN=$(CARGO_TARGET_DIR)/dist python3 bench/http2.py
	LATEEN_BIN=$(CARGO_TARGET_DIR)/dist python3 bench/filters.py --envoy
	cargo build --release --locked -p lateen-control --example scale_ads --example sidecar_saving --example push_cost --example network_cost --example machine_rush
	LATEEN_BIN=$(CARGO_TARGET_DIR)/dist LATEEN_SCALE_ADS=$(CARGO_TARGET_DIR)/release/examples/scale_ads python3 bench/scale.py
	$(CARGO_TARGET_DIR)/release/examples/sidecar_saving
	$(CARGO_TARGET_DIR)/release/examples/push_cost
	$(CARGO_TARGET_DIR)/release/examples/network_cost
	$(CARGO_TARGET_DIR)/release/examples/machine_rush

lint: ## Formatting, clippy, banned dependencies
	@scripts/install-tools.sh build
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@scripts/check-dependencies.sh

fmt: ## Format the code
	cargo fmt --all
