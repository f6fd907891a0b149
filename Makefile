# Everything a contributor or the CI runs. `make` alone lists the targets.

PYTHON ?= python3
PIP_ARGS ?=
GPU ?=
MODEL ?= models/resnet20-cifar10.onnx
DATA ?= data/cifar10.npz
BUDGET ?= 2.5x
EPOCHS ?=
ONLY ?=
DEVICE ?= cpu

runtime := $(if $(filter-out 0,$(GPU)),gpu,cpu)
bin := .venv/bin
# The stamp names the runtime: asking for the other one finds no stamp, and so installs again.
ready := .venv/.done-$(runtime)

# A budget may hold characters that a file name or a make target should not.
space := $(subst ,, )
plain = $(subst :,-,$(subst /,-,$(subst =,-,$(subst %,pct,$(subst $(space),-,$(strip $(1)))))))
compressed = build/$(notdir $(basename $(MODEL)))-$(call plain,$(BUDGET))$(if $(EPOCHS),-$(EPOCHS)epochs).onnx

.PHONY: help venv data baseline compress bench bench-train tables tables-render zoo operators test check clean
.DEFAULT_GOAL := help

help: ## this list
	@echo "usage: make TARGET [PYTHON=python3] [GPU=1] [BUDGET=2.5x] [EPOCHS=n] [MODEL=file.onnx] [DATA=file.npz]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(ready) ## .venv with everything pinned in constraints.txt; GPU=1 takes onnxruntime-gpu

data: data/cifar10.npz ## CIFAR-10 as one checked .npz file

baseline: models/resnet20-cifar10.onnx ## train ResNet-20 and export it, unless the file is there

compress: $(compressed) ## compress MODEL to BUDGET with DATA, into build/

bench-train: $(ready) ## how fast training is, and what BC-ADL adds
	@$(bin)/python -m tools.bench_train --device $(DEVICE)

bench: $(ready) data/cifar10.npz ## budgets of MACs and of time on full-size networks, and peers at equal latency: docs/SPEED.md; ONLY=text
	@$(bin)/python -m tools.bench_speed make --only '$(ONLY)'
	@$(bin)/python -m tools.bench_speed run --only '$(ONLY)'
	@$(bin)/python -m tools.bench_speed measure --only '$(ONLY)'
	@$(bin)/python -m tools.bench_speed render

tables: $(ready) data/cifar10.npz data/cifar10-dev.npz ## run every row of docs/RESULTS.md that has no result yet (hours); ONLY=text DEVICE=cuda
	@$(bin)/python -m tools.paper_tables run --only '$(ONLY)' --device $(DEVICE)
	@$(MAKE) --no-print-directory tables-render

tables-render: $(ready) ## docs/RESULTS.md from results/*.json
	@$(bin)/python -m tools.paper_tables render

zoo: $(ready) ## real models out of public packages through the tool: docs/ZOO.md; ONLY=text
	@$(bin)/python -m tools.run_zoo run --only '$(ONLY)'; failed=$$?; $(bin)/python -m tools.run_zoo render; exit $$failed

operators: $(ready) ## docs/OPERATORS.md: what the importer makes of onnx's own tests of every operator
	@$(bin)/python -m tools.backend_tests --output docs/OPERATORS.md

test: $(ready) ## the tests, side by side; those that measure time follow, one after the other
	@$(bin)/python -m pytest -m 'not alone' -n auto --maxprocesses 8 --dist worksteal
	@$(bin)/python -m pytest -m alone

check: $(ready) ## what CI runs: ruff, mypy, tests
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
# The newest numpy for Python 3.10 has other type parameters than the one that the annotations are written for.
	@if $(bin)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; \
	    then $(bin)/mypy; else echo "mypy needs Python 3.11 or newer here: left out"; fi
	@$(MAKE) --no-print-directory test

clean: ## remove build output (not .venv, data, models or runs)
	@rm -rf build dist

# onnxruntime and onnxruntime-gpu install into one folder: removing either breaks the other, so a switch removes both first.
$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    echo "Python 3.10 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(bin)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@rm -f .venv/.done-*
	@echo "installing into .venv ($(runtime)); the first time takes minutes"
	@if $(bin)/python -c 'from importlib.metadata import version; version("onnxruntime$(if $(filter cpu,$(runtime)),-gpu)")' 2>/dev/null; \
	    then $(bin)/python -m pip uninstall -qq --yes onnxruntime onnxruntime-gpu; fi
	@$(bin)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$(runtime),datasets,dev]'
	@touch $@

# Order-only on .venv: a new version of a tool does not make finished work stale.
data/cifar10.npz: | $(ready)
	@$(bin)/python -m tools.fetch_data cifar10 --output $@

data/cifar10-dev.npz: | $(ready) data/cifar10.npz
	@$(bin)/python -m tools.hold_out data/cifar10.npz $@

models/resnet20-cifar10.onnx: | $(ready) data/cifar10.npz
	@mkdir -p runs
	@$(bin)/python -m tools.train_baseline --data data/cifar10.npz --fast --output runs/resnet20-cycle1.onnx
	@$(bin)/python -m tools.train_baseline --data data/cifar10.npz --fast --start runs/resnet20-cycle1.pt \
	    --epochs 12 --lr 0.1 --seed 1 --output $@
	@$(bin)/python -m tools.render_models

$(compressed): $(MODEL) $(DATA) | $(ready)
	@mkdir -p $(@D)
	@$(bin)/batude-onnx compress '$(MODEL)' --budget '$(BUDGET)' --data '$(DATA)' $(if $(EPOCHS),--epochs $(EPOCHS)) -o '$@'
