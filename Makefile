# Two commands do everything: `make demo` shows what this is, `make test` checks it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGING := setup.py settings.ini requirements.lock

.PHONY: help demo test notebooks lab bench docs clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/installed: $(PACKAGING)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || { echo "Python 3.10 to 3.12 is needed; name one with: make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint requirements.lock --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --quiet --constraint requirements.lock --editable ".[dev]"
	touch $@

demo: $(VENV)/installed  ## recover bodies from pictures, add a keypoint, compare two domains; report in demo/index.html
	$(BIN)/hmr_nb demo --out demo/

test: $(VENV)/installed-dev  ## export, run every notebook, run every test
	$(BIN)/python tests/run.py

notebooks: $(VENV)/installed-dev  ## run every notebook from the top and store its outputs
	$(BIN)/nbdev_export
	cd nbs && ../$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=1800 --ExecutePreprocessor.store_widget_state=False "--ExecutePreprocessor.extra_arguments=['--IPKernelApp.capture_fd_output=False']" *.ipynb
	$(BIN)/nbdev_clean

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
