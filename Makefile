# Every target sets up .venv by itself when it has to.
#
# The package is installed in strict editable mode: a tree of links that tools can follow. A new or
# removed source file is seen only after the install runs again, so the install depends on the list
# of source files (SOURCES_LIST, rewritten only when the list changes).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES_LIST := $(VENV)/sources.txt
PROTOS := moeray/v1/inference.proto moeray/engine/v1/engine.proto
LIST_SOURCES := find cluster kernels worker protos -name '*.py' -o -name '*.pyi' | sort
PYTEST_FLAGS ?=
TEST_PROCESSES ?= 2

# The embedded checkpoint of demo and tests stays inside the repository.
export MOERAY_CACHE_DIR ?= $(CURDIR)/.cache/moeray

.PHONY: help setup demo test test-gpu bench-kernels sanitize-kernels lint proto clean FORCE

help:
	@echo "make demo    install, start a two-rank cluster, ask it three questions, stop it"
	@echo "make test    lint, types and all tests"
	@echo "make test-gpu    kernels at full size;   make bench-kernels   against the hardware's limit"
	@echo "make setup   make .venv and install;   make lint   ruff, mypy, buf;   make proto   protoc"

setup: $(VENV)/installed

$(VENV)/dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=24' 'setuptools>=77'
	$(BIN)/pip install --quiet --editable '.[bench,engine,test,dev]' --config-settings editable_mode=strict
	$(LIST_SOURCES) > $(SOURCES_LIST)
	touch $@ $(VENV)/installed

$(SOURCES_LIST): FORCE | $(VENV)/dependencies
	@$(LIST_SOURCES) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(VENV)/installed: $(VENV)/dependencies $(SOURCES_LIST)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable . --config-settings editable_mode=strict
	touch $@

demo: setup
	$(BIN)/moeray demo --ranks 2

# Tests of whole clusters run alone: they fill a small machine.
test: lint
	$(BIN)/pytest -m 'not cluster' -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_FLAGS)
	$(BIN)/pytest -m cluster $(PYTEST_FLAGS)

# The rest needs a GPU. Elsewhere kernels run under Triton's interpreter, in small.
test-gpu: setup
	$(BIN)/pytest -n 8 tests/kernels $(PYTEST_FLAGS)

bench-kernels: setup
	$(BIN)/python -m tests.bench.kernels --json tests/bench/results/kernels.json

# In processes of a few cases each: workers of pytest-xdist do not start under compute-sanitizer.
SANITIZED := $(VENV)/sanitized.txt
SANITIZE = grep :: $(SANITIZED) | xargs -r -d '\n' -P 8 -n 10 compute-sanitizer

sanitize-kernels: export PYTORCH_NO_CUDA_MEMORY_CACHING = 1
sanitize-kernels: setup
	$(BIN)/pytest --collect-only -q -m 'not gpu' -k 'equals_reference or sort' \
		tests/kernels/test_ops.py tests/kernels/test_moe_ops.py > $(SANITIZED)
	$(SANITIZE) --tool memcheck --error-exitcode 1 $(BIN)/python -m pytest -q
	$(SANITIZE) --tool racecheck $(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

proto: setup
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -I protos --python_out=protos \
		--grpc_python_out=protos --mypy_out=quiet:protos --mypy_grpc_out=quiet:protos $(PROTOS)

clean:
	rm -rf $(VENV) build .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
