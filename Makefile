# One command per habit. `make quickstart` and `make test` set up everything that they need in .venv.
PYTHON ?= python3
NAME ?= feed
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

# A local torch wheel (a CPU build, say) is found where pip's find-links point.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
export UV_SYSTEM_CERTS := 1
# llama.cpp is compiled for this machine, its library alone, with a bounded number of compilers, and without AMX, whose products
# end the process on some machines that have it (SIGSEGV in ggml_backend_amx_mul_mat, llama.cpp issue 20824).
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CMAKE_ARGS := -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF \
	-DCMAKE_CXX_FLAGS=-U__AMX_INT8__

.PHONY: help install lock quickstart report test test-slow engines skypilot checks format bench clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements.lock
	touch $@

# `wf`, which runs this directory's code from anywhere.
$(BIN)/wf: $(VENV)/.installed
	printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s/python" -m cluster.wf "$$@"\n' "$(CURDIR)" "$(CURDIR)/$(BIN)" > $@
	chmod +x $@

install: $(VENV)/.installed $(BIN)/wf ## create .venv and install the pinned environment

lock: install ## pin the newest versions that pyproject.toml allows into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra quickstart --extra dev --python-version 3.11 --upgrade --quiet \
		--no-header --no-annotate --no-emit-find-links --no-emit-index-url | sed -E 's/\+cpu$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock

quickstart: install ## real model, real text, all stages: ends with a served 1.58-bit model and runs/quickstart/report.html
	$(BIN)/python -m jobs.pipeline --config configs/quickstart.yaml $(ARGS)

PYTEST := $(BIN)/python -m pytest --dist loadgroup --no-loadscope-reorder

test: install ## the tests, on two cores
	$(PYTEST) -m "not gpu and not engine and not slow" -n 3 $(ARGS)

test-slow: install ## the long ones: what dies under load and goes on, whole clusters, large files
	$(PYTEST) -m "slow and not gpu and not engine" -n 2 $(ARGS)

# Engines of the teacher, each in an environment of its own: their pins fit neither each other nor the project.
ENGINES ?= $(HOME)/.cache/wfray/engines

$(ENGINES)/%/.installed: configs/engines/%/requirements.txt configs/engines/%/overrides.txt | install
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --override configs/engines/$*/overrides.txt -r configs/engines/$*/requirements.txt
	touch $@

$(ENGINES)/sglang/.shims: $(ENGINES)/sglang/.installed $(wildcard configs/engines/sglang/*.p* configs/engines/sglang/sgl_kernel/*)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --no-deps torchvision==0.28.0
	cp -r configs/engines/sglang/torchvision_on_cpu.* configs/engines/sglang/sgl_kernel $(@D)/lib/python*/site-packages/
	touch $@

engines: $(ENGINES)/vllm/.installed $(ENGINES)/sglang/.shims ## set up vllm and sglang on this CPU and test them as teachers and behind the server
	WFRAY_ENGINES=$(ENGINES) $(BIN)/python -m pytest -m engine tests/wfray/teacher tests/wfray/serving $(ARGS)

# SkyPilot, the tool that launches machines: its pins fit neither the project's nor an engine's.
SKYPILOT := $(HOME)/.cache/wfray/skypilot

$(SKYPILOT)/.installed: | install
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python 'skypilot[nebius,runpod]==0.14.1'
	touch $@

skypilot: $(SKYPILOT)/.installed ## set up SkyPilot and let it judge every file that wf generates
	$(BIN)/python -m pytest -m engine tests/cluster $(ARGS)

checks: install ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## run one benchmark: make bench NAME=qat_step ARGS=--help
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

clean: ## delete the environment; runs are kept
	rm -rf $(VENV) build *.egg-info
