# Two commands for a newcomer: `make demo` and `make test`. Both do all set-up.
# PYTHON names the interpreter (3.11 to 3.13; default: the first that serves), VENV the environment, TORCH=cpu takes
# PyTorch's own CPU build where the registry has only a CUDA build of several GB.
PYTHON ?=
VENV   ?= .venv
# One more than two cores have: a third of the time, a test waits for processes that it started.
WORKERS ?= 3
# Not reordered: tests/conftest.py puts the longest first, so that no worker is left with them at the end.
PARALLEL = -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Their dependencies are none of the product's.
TOOLS  := $(VENV)-audit
PIP    := $(BIN)/python -m pip install -q --no-deps --require-hashes
INDEX  := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
# Which of torch's builds pip found: the registry's for Linux asks for CUDA's libraries, the CPU build does not.
WANTS_CUDA := import importlib.metadata as m, sys; sys.exit(not any("nvidia" in name for name in m.requires("torch")))
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifneq ($(and $(PYTHON),$(wildcard $(BIN)/python)),)
VERSION := -c 'import platform; print(platform.python_version())'
ifneq ($(shell $(PYTHON) $(VERSION)),$(shell $(BIN)/python $(VERSION)))
$(error $(VENV) was made with another Python than $(PYTHON): name a folder for it (VENV=.venv-other), or run `make clean` first)
endif
endif

.PHONY: help setup demo test test-full coverage check types quick-check format proto lock wheel sbom audit bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: $(STAMP) ## make the environment and install everything, pinned and hash-checked

$(BIN)/python:
	@python=$$(tools/find_python.sh "$(PYTHON)") || exit 1; \
	echo "== set-up: virtual environment in $(VENV) ($$python)"; \
	"$$python" -m venv $(VENV)

$(STAMP): pyproject.toml requirements/build.txt requirements/torch-cpu.txt requirements/lock.txt requirements/cuda.txt | $(BIN)/python
	@echo "== set-up: installing pinned packages (a few minutes the first time)"
	@$(PIP) -r requirements/build.txt
	@# A CPU build first, where pip knows one: asked for torch alone it prefers a file whose hash the index names.
	@$(PIP) $(INDEX) -r requirements/torch-cpu.txt $(if $(INDEX),,2>/dev/null || true)
	@$(PIP) --use-pep517 --no-build-isolation $(INDEX) -r requirements/lock.txt
	@if $(BIN)/python -c '$(WANTS_CUDA)'; then $(PIP) -r requirements/cuda.txt; fi
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@

demo: setup ## four organizations fine-tune one model, as real processes
	@$(BIN)/confide demo $(DEMO_ARGS)

test: setup quick-check ## all checks and tests (under 20 minutes on 2 cores)
	@$(call beside-types,$(BIN)/python -m pytest $(PARALLEL) -m "not full" $(PYTEST_ARGS))

test-full: setup quick-check ## also the tests that take long
	@$(call beside-types,$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS))

# The slow checks run while tests wait for processes; what they found stands below the tests' closing line.
beside-types = mkdir -p build; $(MAKE) --no-print-directory types > build/types.log 2>&1 & types=$$!; \
	$(1); tests=$$?; wait $$types; failed=$$?; cat build/types.log; [ $$tests = 0 ] && [ $$failed = 0 ]

coverage: setup ## lines that no test in the pytest processes runs; slower, most of all before Python 3.12
	@COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	$(BIN)/python -m pytest $(PARALLEL) -m "not full" --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

check: quick-check types ## ruff, mypy --strict, import-linter, generated protobuf is current

types: setup
	@$(BIN)/mypy
	@$(BIN)/lint-imports

quick-check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python tools/generate_protos.py --check
	@$(BIN)/python tools/generate_specification_page.py --check

format: setup ## format and sort imports
	@$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format -q .

proto: setup ## regenerate common/confide/proto from protos/
	@$(BIN)/python tools/generate_protos.py

lock: setup ## make requirements/*.txt again after a change to pyproject.toml or constraints.txt
	@$(BIN)/python tools/lock.py

$(TOOLS)/.installed: requirements/audit.txt | $(STAMP)
	@$(BIN)/python -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install -q --no-deps --require-hashes -r requirements/audit.txt
	@touch $@

wheel: setup ## the wheel, in dist/
	@$(BIN)/python -m hatchling build -t wheel

sbom: wheel $(TOOLS)/.installed ## bill of materials (CycloneDX) of the wheel with its extras, in dist/
	@folders=$$($(BIN)/python -c 'import sys; print(":".join(sys.path[1:]))'); \
	$(TOOLS)/bin/python tools/sbom.py "$$folders" dist/confide.cdx.json
	@cd dist && sha256sum *.whl confide.cdx.json > SHA256SUMS

audit: $(TOOLS)/.installed ## known vulnerabilities of what is locked; needs the vulnerability service of PyPI
	@sh tools/audit.sh $(TOOLS)/bin/pip-audit

bench: setup ## every benchmark, results as JSON under build/bench
	@mkdir -p build/bench
	@for b in agreement aggregation round history sealing privacy training tokenizer simulation scale; do \
		$(BIN)/confide bench $$b --json build/bench/$$b.json || exit 1; done

clean: ## remove the environment and build output
	rm -rf $(VENV) $(TOOLS) build dist demo-output
