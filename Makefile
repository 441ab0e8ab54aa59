# Two commands: `make train` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Python compiles what it imports when it does; to compile all that is installed takes half a minute.
INSTALL = $(BIN)/pip install --quiet --no-compile
CONFIG ?= digits
# One place for what XLA has compiled, shared by training, tests and their subprocesses.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: train test short test-all mutants lint oracles bench browser docs picture clean

train: $(VENV)/.installed
	$(BIN)/lbsgd train --config $(CONFIG)

# The short tests compile much and compute little: XLA is told to optimize nothing. The tests of
# `make test-all`, these among them, are of what it compiles for users.
# Types are checked meanwhile.
test: $(VENV)/.installed-dev
	$(MAKE) --jobs=2 lint short

short: $(VENV)/.installed-dev
	XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0" $(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-all: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Breaks each main promise, and shows that a short test notices: about a quarter of an hour.
mutants: $(VENV)/.installed-dev
	$(BIN)/python tests/mutants.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What some tests compare with: PyTorch, and single files of timm and torchvision, for which none of
# their requirements is needed. The tests are skipped where they are missing.
oracles: $(VENV)/.installed-dev
	$(INSTALL) -e ".[oracles]"
	$(INSTALL) --no-deps timm==1.0.15 torchvision==0.28.0

# All measurements that this machine can make, for hours in which it does nothing else; then the
# tables of the documents. With PyTorch, after `make oracles`, it is a peer.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bench.py run
	$(BIN)/python benchmarks/bench.py table

# In what a test opens report.html: Debian's Chromium and its driver. The test is skipped without them.
browser:
	apt-get install --yes --no-install-recommends chromium chromium-driver

# The site, to be read from site/index.html; it asks nobody for anything.
docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(INSTALL) -r requirements-dev.txt
	touch $@

# The picture in the README, from a run of its own.
picture: $(VENV)/.installed
	rm -rf runs/picture
	$(BIN)/lbsgd train --config configs/digits.py --workdir runs/picture
	cp runs/picture/curves.png docs/digits.png

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache build site *.egg-info
