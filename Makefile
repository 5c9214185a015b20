# run: notebooks and report.  test: all tests.  test-fast: those that start no browser, notebook or command.  lab: JupyterLab.
# demo: the page.  Each makes .venv first if it is missing; run, test and demo also bring the browsers that are missing.
PYTHON ?= python3
NETWORK ?= demo
WEIGHTS ?= demo
OUTPUT ?= build
WORKERS ?= 2
VENV = .venv
INSTALLED = $(VENV)/.installed
quoted = '$(subst ','\'',$(1))'
CHOSEN = --network $(call quoted,$(NETWORK)) --weights $(call quoted,$(WEIGHTS)) --output-dir $(call quoted,$(OUTPUT))
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: run test test-fast lab demo browser
run: browser
	$(VENV)/bin/python -m moebius_lab run $(CHOSEN)

test: browser
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m 'not slow'

lab: $(INSTALLED)
	$(VENV)/bin/jupyter lab --notebook-dir=notebooks

demo: browser
	$(VENV)/bin/python -m moebius_lab bundle $(CHOSEN)
	$(VENV)/bin/python -m moebius_lab serve $(call quoted,$(OUTPUT)/bundle)

browser: $(INSTALLED)
	$(VENV)/bin/python -m moebius_lab browser

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,test]'
	@touch $@
