# One target for each thing a person does. `make demo` and `make test` set everything up themselves.
#
#   VENV=DIR     use or make the environment in DIR (default .venv)
#   PYTHON=EXE   the Python >= 3.10 to make it with (default python3)

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# Each installs what it needs: the demo no compiler of FFCV, no DALI, no framework.
READY := $(VENV)/.xmix_data-demo
TEST_READY := $(VENV)/.xmix_data-test

.PHONY: help demo test test-all check format docs bench gpu tables pictures release clean

help:
	@echo "make demo    the whole way on data that packages ship, about a minute"
	@echo "make test    all checks: ruff, mypy, import rules, pytest but for its slow tests"
	@echo "make test-all  the same with the slow tests, on every Python from 3.10 to 3.13 that is here"
	@echo "make check   the same without pytest"
	@echo "make format  put the code into ruff's format"
	@echo "make docs    the documentation, in build/docs (make test builds it as strictly)"
	@echo "make bench DATA=FOLDER  all measurements, on a class folder of photographs: half an hour"
	@echo "make gpu     what a GPU is measured for, ten minutes; PART=steps: only that; DEVICE=cpu: a try"
	@echo "make tables  redraw the tables and plots of README.md and docs from benchmarks/results"
	@echo "make pictures  draw the README's picture and run the notebook anew"
	@echo "make release  the sdist, and a wheel made of it with libjpeg-turbo inside, in dist"
	@echo "make clean   remove the environment and what was built"

demo: $(READY)
	$(BIN)/xmix demo

# Two files at a time: tests wait for processes that they start as often as for a core.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: check
	$(PYTEST) -m "not slow"

test-all: check
	$(PYTEST)

check: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(TEST_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(TEST_READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/docs/index.html; its search needs a server:"
	@echo "python3 -m http.server --directory build/docs"

bench: $(TEST_READY)
	@test -n "$(DATA)" || { echo "give a class folder of photographs: make bench DATA=FOLDER"; exit 2; }
	$(INSTALL) --editable '.[bench]'
	for name in conversion loader_throughput cold_cache growth step_cost pairing; do \
	    $(BIN)/python benchmarks/$$name.py $(DATA) || exit 1; done
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/huge_sets.py

gpu: $(TEST_READY)
	$(BIN)/python benchmarks/gpu.py $(or $(PART),all) $(if $(filter cpu,$(DEVICE)),--device cpu --tiny)

tables: $(TEST_READY)
	$(BIN)/python benchmarks/tables.py

pictures: $(TEST_READY)
	$(BIN)/xmix demo --seeds 1 --output build/demo
	$(BIN)/python benchmarks/pictures.py build/demo

release: $(TEST_READY)
	rm -rf build/release dist && mkdir -p dist
	$(BIN)/python -m build --no-isolation --outdir build/release
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/release/*.whl
	cp build/release/*.tar.gz dist

INPUTS := setup.py pyproject.toml xmix_data/_jpeg.c .ci/system-packages

# Without --no-compile pip compiles every file that it installs, on one core, most of them for nobody.
# What is imported is compiled once, and must be kept: importing torch takes seconds longer otherwise.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

$(READY): $(INPUTS)
	@.ci/system-packages $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(TEST_READY): $(INPUTS)
	@.ci/system-packages $(PYTHON) test
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) --editable '.[demo,test]'
	@touch $@ $(READY)

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
