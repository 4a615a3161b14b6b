# make demo    the whole job on this machine: corpus to samples
# make test    the tests         make check   formatter, linter, types
# make structure  how the package is built, in numbers beside their targets
# make gpu-kit    what a GPU machine without network lacks, in .gpu/; there: bash benchmarks/gpu.sh
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
# configs of images have names that begin with digits, and no prompts
IMAGES := $(filter digits%,$(NAME))
DATA := $(if $(IMAGES),data/digits,data/python_stdlib)
ifeq ($(shell command -v nvidia-smi),)
# spares two warnings
export DS_ACCELERATOR := cpu
endif

.PHONY: demo test check format structure gpu-kit install clean

install: $(INSTALLED)

demo: $(INSTALLED) $(DATA)/dataset.json
	@echo "== train $(CONFIG) on $(RANKS) processes"
	@$(BIN)/deepspeed --quiet --num_accelerators $(RANKS) launcher/train.py --config $(CONFIG)
	@echo "== consolidate, evaluate, generate"
	@rm -rf exported/$(NAME) samples/$(NAME)
	@$(BIN)/python launcher/consolidate.py --run runs/$(NAME) --output exported/$(NAME)
	@$(BIN)/python launcher/evaluate.py --checkpoint exported/$(NAME) --data $(DATA) --output runs/$(NAME)/evaluation.json
ifdef IMAGES
	@$(BIN)/python launcher/generate.py --checkpoint exported/$(NAME) --output samples/$(NAME) --num-samples 100 \
	    --part-size 100
else
	@$(BIN)/python launcher/generate.py --checkpoint exported/$(NAME) --output samples/$(NAME)/from_scratch \
	    --num-samples 3 --print
	@$(BIN)/python launcher/generate.py --checkpoint exported/$(NAME) --output samples/$(NAME)/from_prompts \
	    --prompts configs/$(NAME).prompts.jsonl --temperature 0.5 --print
endif
	@echo
	@echo "TensorBoard logs  runs/$(NAME)/tensorboard   ($(BIN)/tensorboard --logdir runs)"
	@echo "checkpoint        exported/$(NAME)"
	@echo "samples           samples/$(NAME)"
	@echo "next              $(BIN)/deepspeed --num_accelerators $(RANKS) launcher/train.py --config $(CONFIG) training.steps=4000 training.run_directory=runs/longer"

data/digits/dataset.json: | $(INSTALLED)
	@echo "== prepare the handwritten digits of scikit-learn"
	@$(BIN)/python launcher/prepare.py --digits --output data/digits --overwrite

data/python_stdlib/dataset.json: | $(INSTALLED)
	@echo "== prepare the Python standard library's source"
	@$(BIN)/python launcher/prepare.py --input "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
	    --include '*.py' --exclude site-packages --output data/python_stdlib --seq-len 128 --overwrite \
	    --tokenizer data/python_stdlib.tokenizer.json --train-tokenizer 2048

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

structure: $(INSTALLED)
	$(BIN)/python -m tests.structure

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

gpu-kit: $(INSTALLED)
	@$(BIN)/python -m benchmarks.gpu.kit

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(if $(filter installed,$(TORCH)),--system-site-packages) .venv
	$(if $(filter installed,$(TORCH)),,$(BIN)/pip install --quiet $(TORCH))
	grep -v '^torch==' constraints.txt > .venv/constraints.txt
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> .venv/constraints.txt
	$(BIN)/pip install --quiet --constraint .venv/constraints.txt --editable '.[dev]'
	rm -f .venv/installed-*
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
