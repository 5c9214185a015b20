# run: notebooks and report.  test: all tests.  test-fast: those that take no browser and no notebook.  lab: JupyterLab.
# demo: the page.  Each makes .venv first if it is missing.
PYTHON ?= python3
NETWORK ?= demo
WEIGHTS ?= demo
OUTPUT ?= build
WORKERS ?= 2
VENV = .venv
INSTALLED = $(VENV)/.installed
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: run test test-fast lab demo
run: $(INSTALLED)
	$(VENV)/bin/python -m moebius_lab run --network $(NETWORK) --weights $(WEIGHTS) --output-dir $(OUTPUT)

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m 'not slow'

lab: $(INSTALLED)
	$(VENV)/bin/jupyter lab --notebook-dir=notebooks

demo: $(INSTALLED)
	$(VENV)/bin/python -m moebius_lab bundle --network $(NETWORK) --weights $(WEIGHTS) --output-dir $(OUTPUT)
	$(VENV)/bin/python -m moebius_lab serve $(OUTPUT)/bundle

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,test]'
	@touch $@
