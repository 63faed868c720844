# The README's commands. VENV=DIR uses that environment as it is (CI brings one with the built wheel in it).
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11) python3)
VENV ?= .venv
BIN := $(VENV)/bin
TESTS ?= tests
READY := $(if $(filter .venv,$(VENV)),.venv/ready,)

.PHONY: venv run demo test test-net test-systemd test-long lint check reference fuzz bench deb install clean

venv: $(READY)

.venv/ready: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "latticed needs Python 3.11 or newer with venv (Debian: apt install python3-venv); or: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(READY)
	$(BIN)/python -P plugins-sample/tour.py run

demo: $(READY)
	$(BIN)/python -P plugins-sample/tour.py demo

# All but tests/net and tests/booted, which have targets of their own
test: $(READY)
	$(BIN)/python -P -m pytest --ignore tests/net --ignore tests/booted $(TESTS) $(PYTEST_ARGS)

# As root: real nft and WireGuard in network namespaces that the tests make; the host's own tables are not touched
test-net: $(READY)
	$(BIN)/python -P -m pytest tests/net $(PYTEST_ARGS)

# As root: Debian 12 and 13 as machines of systemd-nspawn; the first time takes minutes, for their root file systems
test-systemd: $(READY)
	$(BIN)/python -P -m pytest --timeout 1800 tests/booted $(PYTEST_ARGS)

# Whole loops and matrices, of which `make test`, `make test-net` and `make test-systemd` run a sample (tests/house/long.py),
# and a machine in QEMU; those of tests/net and tests/booted as root
test-long: $(READY)
	LATTICED_LONG=1 $(BIN)/python -P -m pytest --timeout 1800 \
	  $(shell grep -rlE 'long\.(only|times|LONG)|DISK_ERRORS|import hypothesis|from hypothesis' tests --include='test_*.py') $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	PYTHONPATH=docs:. $(BIN)/python -P -m generate --check

check: lint test

# docs/reference and docs/troubleshooting.md, from the code
reference: $(READY)
	PYTHONPATH=docs:. $(BIN)/python -P -m generate

# What reads strangers' bytes; for an hour: make fuzz FUZZ_ARGS="--seconds 3600"
fuzz: $(READY)
	$(BIN)/python -P tests/fuzz/run.py $(FUZZ_ARGS)

# Some of it: make bench BENCH_ARGS="--only P1,P3 --quick"
bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# A Debian package in dist/: make deb SUITE=trixie; see packaging/deb
SUITE ?= $(shell . /etc/os-release && echo $$VERSION_CODENAME)

deb: $(READY)
	VENV=$(VENV) packaging/deb $(SUITE)

# What is in the package, without one: make install DESTDIR=/tmp/tree SUITE=trixie
install: $(READY)
	$(BIN)/python -P packaging/tree.py $(SUITE) $(or $(DESTDIR),/)

clean:
	rm -rf .venv .run build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* htmlcov
	find latticed tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
