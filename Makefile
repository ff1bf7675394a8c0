# make setup   .venv with both programs (.venv/bin/meterd, .venv/bin/meterctl)
# make demo    a street of four is metered, sealed and certified; FOR=seconds, 60 unless told; FAULTS=trouble
# make test    every check that a change has to pass
# make bench   figures beside their aims; fails nothing
# make soak    the long runs
# make clean   takes away what the others made
#
# Where a Debian package is missing it is installed (as root, or through sudo without a password), else the line
# to run is printed. make itself ends with 2 on any failure; "Error 69" in its own last line is the script's status.

PYTHON ?= python3
FOR ?= 60
SOAK ?= -m soak --timeout=0
# Test files side by side, one a core: most of them wait for a process, a broker or a machine that boots.
WORKERS ?= auto

# mosquitto and nft lie where only root's PATH looks, on Debian.
export PATH := $(PATH):/usr/sbin:/sbin

bin = .venv/bin
# 26.3: pip reads [dependency-groups] from 25.1 on, and Debian's own is older.
pip_version = 26.3
pip_quiet = -qq --disable-pip-version-check --no-input

.PHONY: setup demo test bench soak format tools clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

setup: .venv/made
	@echo "ready: $(bin)/meterd, $(bin)/meterctl"

demo: .venv/made
	@$(bin)/meterd demo --for $(FOR) $(if $(FAULTS),--faults '$(FAULTS)')

test: tools .venv/made-checks .venv-oracles/made .container/made
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report=
	$(bin)/python -m pytest -q hw_tests --port sim
	$(bin)/coverage report --include='meterd/metering/*,meterd/ledger/*' --fail-under=100

bench: .venv/made-checks
	$(bin)/python -m tests.bench

soak: tools .venv/made-checks .venv-oracles/made .container/made
	$(bin)/python -m pytest $(SOAK)

format: .venv/made-checks
	$(bin)/ruff check --fix
	$(bin)/ruff format

# Disk faults are injected with strace; mosquitto is the broker that a street has.
tools:
	@.ci/need strace:strace mosquitto:mosquitto mosquitto_pub:mosquitto-clients ip:iproute2 nft:nftables nats-server:nats-server openssl:openssl zsh:zsh fish:fish

clean:
	rm -rf .venv .venv-oracles .container .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache \
	    .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made: pyproject.toml
	@PYTHON=$(PYTHON) .ci/need $(PYTHON):python3 import-ensurepip:python3-venv
	@$(PYTHON) -c 'import sys; sys.exit(69 if sys.version_info < (3, 11) else 0)' || \
	    { echo "meterd needs Python 3.11 or newer; name one with: make PYTHON=python3.X" >&2; exit 69; }
	@echo "setting up .venv (some 20 seconds)"
	@$(PYTHON) -m venv .venv
	@$(bin)/python -m pip install $(pip_quiet) pip==$(pip_version)
	@$(bin)/python -m pip install $(pip_quiet) --editable '.[cli,demo]'
	@touch $@

.venv/made-checks: .venv/made
	@echo "adding the checks' tools to .venv"
	@$(bin)/python -m pip install $(pip_quiet) --group dev
	@touch $@

# An independent COSE library, which needs an older cbor2 than ours: an environment of its own.
.venv-oracles/made: tests/oracles/requirements.txt | .venv/made
	@echo "setting up .venv-oracles"
	@$(PYTHON) -m venv .venv-oracles
	@.venv-oracles/bin/python -m pip install $(pip_quiet) --requirement tests/oracles/requirements.txt
	@touch $@

# What whole-device tests boot. It takes root: without, they are skipped, and CI is root.
.container/made: tests/container/build.py pyproject.toml | .venv/made-checks
	@.ci/need mmdebstrap:mmdebstrap systemd-nspawn:systemd-container
	@if [ "$$(id -u)" = 0 ]; then \
	    echo "building the container of the tests (some 90 seconds)"; $(bin)/python -m tests.container.build; \
	else mkdir -p $(@D); fi
	@touch $@
