# Two commands for a newcomer: `make demo` and `make test`. Both do all set-up.
PYTHON ?= python3.11
VENV   := .venv
WORKERS ?= 2
PARALLEL = -n $(WORKERS) --dist loadgroup
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-full check format proto bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(STAMP) ## make .venv and install everything, pinned

$(STAMP): pyproject.toml constraints.txt
	@echo "== set-up: virtual environment in $(VENV) ($(PYTHON))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "== set-up: installing pinned packages (a few minutes the first time)"
	@$(BIN)/pip install -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(BIN)/pip install -q -c constraints.txt -e '.[dev,models,simulation,evaluation,postgres]'
	@touch $@

demo: setup ## four organizations fine-tune one model, as real processes
	@$(BIN)/confide demo $(DEMO_ARGS)

test: setup check ## all checks and tests (under 20 minutes on 2 cores)
	@$(BIN)/python -m pytest $(PARALLEL) -m "not full" --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

test-full: setup check ## also the tests that take long
	@$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

check: setup ## ruff, mypy --strict, import-linter, generated protobuf is current
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/generate_protos.py --check

format: setup ## format and sort imports
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

proto: setup ## regenerate common/confide/proto from protos/
	@$(BIN)/python tools/generate_protos.py

bench: setup ## every benchmark, results as JSON under build/bench
	@mkdir -p build/bench
	@for b in agreement aggregation round sealing privacy training tokenizer simulation scale; do \
		$(BIN)/confide bench $$b --json build/bench/$$b.json || exit 1; done

clean: ## remove the environment and build output
	rm -rf $(VENV) build dist demo-output
