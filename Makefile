# `make` or `make help` lists the targets. A line of help is what stands behind ## beside a target.
#
# TORCH chooses another torch; anything `pip install` takes, or `installed` for the one that PYTHON already has:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#   make demo TORCH=installed
PYTHON ?= python3
TORCH ?= torch==2.13.0
CONFIG ?= configs/quickstart_nar.yaml
RANKS ?= 2

BIN := .venv/bin
# another TORCH makes another stamp, so that it is installed over the one before
INSTALLED := .venv/installed-$(shell echo '$(TORCH)' | md5sum | cut -c1-8)
NAME := $(basename $(notdir $(CONFIG)))
DATA := $(shell sed -n '/^data:/,/^[a-z]/s/^  directory: *//p' $(CONFIG))
PROMPTS := $(wildcard configs/$(NAME).prompts.jsonl)
BENCHMARKS ?= data_stream step_time generation_speed left_to_right_speed
ifeq ($(shell command -v nvidia-smi),)
# spares two warnings
export DS_ACCELERATOR := cpu
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test check format docs structure bench gpu-kit clean

help:  ## this list
	@echo "make TARGET [PYTHON=python3] [TORCH=...] [CONFIG=$(CONFIG)] [RANKS=$(RANKS)]"
	@awk -F '  ## ' '/^[a-z-]+:.*  ## / { sub(/:.*/, "", $$1); printf "  %-11s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## the package with all that the tests need, into .venv

demo: $(INSTALLED) $(DATA)/dataset.json  ## the whole job on this machine: corpus, training on RANKS processes, samples
	@echo "== train $(CONFIG) on $(RANKS) processes"
	@$(BIN)/deepspeed --quiet --num_accelerators $(RANKS) launcher/train.py --config $(CONFIG)
	@echo "== consolidate and evaluate"
	@rm -rf exported/$(NAME) samples/$(NAME)
	@$(BIN)/python launcher/consolidate.py --run runs/$(NAME) --output exported/$(NAME)
	@$(BIN)/python launcher/evaluate.py --checkpoint exported/$(NAME) --data $(DATA) --output runs/$(NAME)/evaluation.json
ifeq ($(PROMPTS),)  # images
	@echo "== draw"
	@$(BIN)/python launcher/generate.py --checkpoint exported/$(NAME) --output samples/$(NAME) --num-samples 100 \
	    --part-size 100
else
	@echo "== what it makes of"
	@cat $(PROMPTS)
	@$(BIN)/python launcher/generate.py --checkpoint exported/$(NAME) --output samples/$(NAME)/from_prompts \
	    --prompts $(PROMPTS) --temperature 0.5 --print
	@echo "== what it makes of nothing, which takes longer training to become sense"
	@$(BIN)/python launcher/generate.py --checkpoint exported/$(NAME) --output samples/$(NAME)/from_scratch \
	    --num-samples 3 --print
endif
	@echo
	@echo "TensorBoard logs  runs/$(NAME)/tensorboard   ($(BIN)/tensorboard --logdir runs)"
	@echo "checkpoint        exported/$(NAME)"
	@echo "samples           samples/$(NAME)"
	@echo "next              $(BIN)/deepspeed --quiet --num_accelerators $(RANKS) launcher/train.py --config $(CONFIG) training.steps=4000 training.run_directory=runs/longer"

data/digits/dataset.json: | $(INSTALLED)
	@echo "== prepare the handwritten digits of scikit-learn"
	@$(BIN)/python launcher/prepare.py --digits --output data/digits --overwrite

data/python_stdlib/dataset.json: | $(INSTALLED)
	@echo "== prepare the Python standard library's source"
	@$(BIN)/python launcher/prepare.py --input "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
	    --include '*.py' --exclude site-packages --output data/python_stdlib --seq-len 128 --overwrite \
	    --tokenizer data/python_stdlib.tokenizer.json --train-tokenizer 4096

test: $(INSTALLED)  ## all tests, on two cores at most 20 minutes
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

check: $(INSTALLED)  ## formatter, linters and types, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck slurm/*.sbatch tests/slurm/*.sh benchmarks/*.sh

docs: $(INSTALLED)  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

structure: $(INSTALLED)  ## how the package is built, in numbers beside their targets
	$(BIN)/python -m tests.structure

format: $(INSTALLED)  ## what the formatter and the linter can mend by themselves
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## BENCHMARKS, by default those against other libraries; what they say of a machine is in RESULTS.md
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit; done

gpu-kit: $(INSTALLED)  ## what a GPU machine without network lacks, in .gpu/; there: bash benchmarks/gpu.sh
	@$(BIN)/python -m benchmarks.gpu.kit

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(if $(filter installed,$(TORCH)),--system-site-packages) .venv
	$(if $(filter installed,$(TORCH)),,$(BIN)/pip install --quiet $(TORCH))
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> .venv/constraints.txt
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable '.[dev]'
	rm -f .venv/installed-*
	touch $@

clean:  ## remove .venv and caches, but no data, runs, checkpoints and samples
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
