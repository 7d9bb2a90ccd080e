# The two commands of the README are `make demo` and `make test`. They work on a fresh Debian or Ubuntu, as root or with
# sudo; the first run installs what is missing, the second is quick. Elsewhere they say what to install.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup system demo test box unbox check clean
.PHONY: check-format check-lint check-types check-imports check-spelling check-shell

VENV := .venv
BIN ?= $(VENV)/bin
# Everything that makes sandboxes needs root; what only builds the environment does not.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
OUT ?= out
ARGS ?=
SHELL_FILES = $(shell grep -rlE '^\#!.*[/ ](ba|da)?sh( |$$)' .ci images vm benchmarks)
# sudo clears the environment; what the tests and the manager listen to is passed on by name.
AS_ROOT = $(SUDO) env SANDBOX_MUST_WORK="$(SANDBOX_MUST_WORK)" SANDBOX_STATE_DIR="$(SANDBOX_STATE_DIR)"

help: ## say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(VENV)/.installed ## install what is missing: packages, the environment, daemons, images
	@$(AS_ROOT) $(BIN)/sandbox doctor --fix || echo "some levels are not available here; going on without them"
	@$(AS_ROOT) $(BIN)/sandbox images build

demo: setup ## compare the reactor at each isolation level, and write the report to out/
	@$(AS_ROOT) $(BIN)/sandbox compare reactor -o $(OUT)/

test: setup ## run every test, on real engines (ARGS="-k word" to choose)
	@$(AS_ROOT) $(BIN)/pytest --durations=15 $(ARGS)

box: $(VENV)/.installed ## make the box of the Vagrantfile: then `vagrant up` (docs/vagrant.md)
	@$(AS_ROOT) $(BIN)/python -m sandbox.images.vagrant

unbox: ## remove the box: from Vagrant, from libvirt's storage pool, and here; and its network
	@for box in $$(vagrant box list | sed -nE 's/^(sandbox-[0-9a-f]{12}) .*/\1/p'); do \
	  vagrant box remove "$$box" --provider libvirt --all </dev/null || { echo "vagrant destroy comes first" >&2; exit 1; }; \
	done
	@for volume in $$(virsh -q -c qemu:///system vol-list default 2>/dev/null | sed -nE 's/^ *(sandbox-[0-9a-f]{12}_vagrant_box_image_[^ ]+) .*/\1/p'); do \
	  virsh -q -c qemu:///system vol-delete --pool default "$$volume"; \
	done
	@$(SUDO) rm -rf "$${SANDBOX_STATE_DIR:-/var/lib/sandbox}/box"
	@$(AS_ROOT) $(BIN)/python -P -m sandbox.network.vagrant down

check: $(VENV)/.installed check-format check-lint check-types check-imports check-spelling check-shell ## formatting, lint, types, contracts

check-format:
	@$(BIN)/ruff format --check .

check-lint:
	@$(BIN)/ruff check .

check-types:
	@$(BIN)/mypy

check-imports:
	@PATH="$(BIN):$$PATH" $(BIN)/lint-imports --no-logo

check-spelling:
	@$(BIN)/codespell

check-shell:
	@shellcheck $(SHELL_FILES)

clean: ## remove what was built in this folder (images and state stay: sandbox images rm, sandbox prune)
	@$(SUDO) rm -rf $(VENV) build dist $(OUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# /usr/bin/python3 comes first: a shim on PATH, as version managers put there, adds its own start to every figure.
$(VENV)/.installed: pyproject.toml
	@if command -v apt-get >/dev/null && ! { command -v shellcheck && command -v curl && /usr/bin/python3 -c 'import ensurepip'; } >/dev/null 2>&1; then \
	  $(SUDO) apt-get update -q && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
	    ca-certificates curl python3 python3-venv shellcheck; \
	fi
	@new() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if new /usr/bin/python3; then python=/usr/bin/python3; \
	elif new python3; then python=python3; \
	else echo "sandbox needs Python 3.11 or newer; here is $$(python3 --version 2>&1)" >&2; exit 1; fi; \
	test -x $(BIN)/python || "$$python" -m venv $(VENV)
# libvirt's binding is compiled against the host's libvirt; without its headers yet, `sandbox doctor --fix` adds it.
	@extras=dev; if pkg-config --exists libvirt 2>/dev/null; then extras=dev,vm; fi; \
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[$$extras]" || \
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]"
	@touch $@
