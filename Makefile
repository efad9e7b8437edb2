# Each target installs what it needs into .venv, if that is absent or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check install format docs mini bench lock clean

demo: install  ## Index this Python's documentation and write with it.
	$(BIN)/flashback demo

test: install  ## Run the whole test suite: no network, no GPU needed.
	$(BIN)/python -m pytest

check: install  ## Formatting, lint and strict types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)  ## Make .venv with the pinned development versions.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"FlashBack needs Python 3.11 or newer, found {sys.version.split()[0]}; use PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

format: install  ## Rewrite the sources the way `check` wants them.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## Write docs/cli.md anew from the commands' help.
	$(BIN)/python docs/write_cli_help.py

bench: install  ## The paper's run-time test on this machine.
	$(BIN)/flashback bench runtime

mini: install  ## Train the shipped reader anew: about 75 minutes on two cores.
	$(BIN)/python -m pip install --quiet -c constraints.txt -r recipes/mini/requirements.txt
	$(BIN)/python recipes/mini/train.py --out src/flashback/readers/flashback-mini

lock:  ## Resolve the newest versions into constraints.txt.
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet -e '.[dev]' -r recipes/mini/requirements.txt torch==2.13.0
	(echo '# Every version used in development and CI; `make lock` writes this file anew.'; \
	  build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//') > constraints.txt

clean:
	rm -rf $(VENV) build dist
