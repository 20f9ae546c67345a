# Two commands do everything: `make demo` shows what this is, `make test` checks it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGING := setup.py settings.ini requirements.lock

.PHONY: help demo test check export notebook notebooks lab bench docs clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/installed: $(PACKAGING)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo "Python 3.10 to 3.13 is needed; name one with: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint requirements.lock --editable .
	@$(BIN)/hmr_nb import-weights blazepose || true  # finds people in photographs
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --quiet --constraint requirements.lock --editable ".[dev]"
	touch $@

demo: $(VENV)/installed  ## recover bodies from pictures, add a keypoint, compare two domains; report in demo/index.html
	$(BIN)/hmr_nb demo --out demo/

test: $(VENV)/installed-dev  ## check, run every notebook, run every test
	$(BIN)/python tests/run.py

check: $(VENV)/installed-dev  ## export, lint, types, rules of the notebooks: within a minute
	$(BIN)/python tests/run.py check

export: $(VENV)/installed-dev  ## notebooks to modules; notes on arguments to docstrings
	$(BIN)/python tests/export.py

notebook: export  ## run one page and store its outputs: make notebook NB=06_smpl
	$(BIN)/python tests/run.py notebooks "$(NB)"

notebooks: export  ## run every notebook from the top and store its outputs
	$(BIN)/python tests/run.py notebooks

lab: $(VENV)/installed-dev  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

bench: $(VENV)/installed-dev  ## speeds, measured side by side
	$(BIN)/python tests/bench.py

docs: $(VENV)/installed-dev  ## the book as a site in site/
	$(BIN)/python -m mkdocs build --quiet --strict
	@echo "site/index.html"

clean:  ## remove what the commands above made
	rm -rf $(VENV) build dist site demo *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
