# The two commands of the README are `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that the suite is shared by; tests of a file stay together.
WORKERS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-ray test-parallel test-fuzz lint format bench pull install clean

demo: pull
	@echo; echo '$$ glmkit run knowledge-chat --kb knowledge --ask 世界上最大的河流是哪一条？'
	@$(BIN)/glmkit run knowledge-chat --kb knowledge --ask '世界上最大的河流是哪一条？'
	@echo; echo '$$ glmkit run knowledge-chat --kb knowledge --ask "What is the deepest lake in the world?"'
	@$(BIN)/glmkit run knowledge-chat --kb knowledge --ask 'What is the deepest lake in the world?'

test: pull
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-ray: install
	@$(BIN)/python -m pytest -m ray

test-parallel: install
	@$(BIN)/python -m pytest -m parallel

# Made-up requests to each route of the server: 500 of each, not the suite's few.
test-fuzz: install
	@GLMKIT_FUZZ=500 $(BIN)/python -m pytest --timeout=3000 tests/plugins/serve/test_fuzz_api.py

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

format: install
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: pull
	@$(BIN)/python benchmarks/run.py $(BENCH) && $(BIN)/python benchmarks/encode.py

pull: install
	@$(BIN)/glmkit pull default --keep-download

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt $(wildcard glmkit/runtime/*.c)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
