"""Mistakes with checkpoints: missing, damaged, of something else, mixed up."""

import json
import shutil
from pathlib import Path

from .mistake import Mistake, own, write

TRAIN = "train --config small.yaml training.steps=4"
EVALUATE = "evaluate --data data --output e.json --checkpoint"


def damaged(directory: str, pattern: str, content: bytes | None):
    """Overwrite or delete a file in a copy of a shared directory."""

    def prepare(here: Path) -> None:
        path = next(iter(sorted(own(directory, here).glob(pattern))))
        path.unlink() if content is None else path.write_bytes(content)

    return prepare


def llama(**changes: object):
    """Write the `config.json` of a Llama directory, without weights."""
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return write("llama/config.json", json.dumps({"model_type": "llama", **dict.fromkeys(sizes, 8), **changes}))


def without_checkpoints(here: Path) -> None:
    shutil.rmtree(own("run", here) / "checkpoints" / "step-000000002")


MISTAKES = {
    "resume: nothing there": Mistake(
        f"{TRAIN} --resume nowhere/step-000000001", ("nowhere/step-000000001", "--resume")
    ),
    "resume: a run directory": Mistake(f"{TRAIN} --resume run", ("run", "step-NNNNNNNNN")),
    "resume: a consolidated checkpoint": Mistake(f"{TRAIN} --resume nar", ("nar",)),
    "resume: another model": Mistake(
        f"{TRAIN} training.run_directory=run model.dim=64", ("model.dim", "32", "64", "training.run_directory")
    ),
    "resume: another objective": Mistake(
        f"{TRAIN} training.run_directory=run objective.kind=autoregressive", ("objective.kind", "autoregressive")
    ),
    "resume: another seed": Mistake(f"{TRAIN} training.run_directory=run training.seed=5", ("training.seed", "5")),
    "resume: another batch size": Mistake(
        f"{TRAIN} training.run_directory=run training.global_batch_size=12",
        ("training.global_batch_size", "6", "12"),
    ),
    "resume: never, with checkpoints": Mistake(
        f"{TRAIN} training.run_directory=run --resume never", ("--resume", "training.run_directory")
    ),
    "resume: checkpoints are gone": Mistake(f"{TRAIN} training.run_directory=run", ("latest",), without_checkpoints),
    "resume: the only checkpoint is damaged": Mistake(
        f"{TRAIN} training.run_directory=run",
        ("manifest.json",),
        damaged("run", "checkpoints/step-*/manifest.json", b"{"),
    ),
    "init-from: nothing there": Mistake(f"{TRAIN} --init-from nowhere", ("nowhere",)),
    "init-from: another model": Mistake(f"{TRAIN} --init-from nar model.dim=64", ("nar",)),
    "init-from: a data set": Mistake(f"{TRAIN} --init-from data", ("data",)),
    "init-from: damaged weights": Mistake(
        f"{TRAIN} --init-from nar", ("model.safetensors",), damaged("nar", "model.safetensors", b"x")
    ),
    "init-from: an autoregressive model of other tokens": Mistake(
        f"{TRAIN} --init-from ar data.vocabulary_size=300", ("net.token_emb.weight", "257", "300", "ar")
    ),
    "consolidate: no run": Mistake("consolidate --run nowhere --output new", ("nowhere",)),
    "consolidate: a data set": Mistake("consolidate --run data --output new", ("data", "run directory")),
    "consolidate: a consolidated checkpoint": Mistake("consolidate --run nar --output new", ("nar", "run directory")),
    "consolidate: no such step": Mistake("consolidate --run run --step 7 --output new", ("7",)),
    "consolidate: step in words": Mistake("consolidate --run run --step last --output new", ("--step", "last")),
    "consolidate: output is there": Mistake("consolidate --run run --output data", ("data",)),
    "evaluate: no checkpoint": Mistake(f"{EVALUATE} nowhere", ("nowhere",)),
    "evaluate: a run directory": Mistake(f"{EVALUATE} run", ("run", "nar-scale", "consolidate")),
    "evaluate: a data set": Mistake(f"{EVALUATE} data", ("data",)),
    "evaluate: no average": Mistake(f"{EVALUATE} nar --weights ema", ("training.ema_decay",)),
    "evaluate: damaged weights": Mistake(
        f"{EVALUATE} nar", ("model.safetensors",), damaged("nar", "model.safetensors", b"x")
    ),
    "evaluate: no weights": Mistake(
        f"{EVALUATE} nar", ("model.safetensors",), damaged("nar", "model.safetensors", None)
    ),
    "evaluate: damaged model.json": Mistake(f"{EVALUATE} nar", ("model.json",), damaged("nar", "model.json", b"{")),
    "evaluate: damaged config.yaml": Mistake(f"{EVALUATE} nar", ("config.yaml",), damaged("nar", "config.yaml", b"{")),
    "evaluate: limit 0": Mistake(f"{EVALUATE} nar --limit 0", ("limit", "0")),
    "evaluate: batch size 0": Mistake(f"{EVALUATE} nar --batch-size 0", ("batch", "0")),
    "export: a non-autoregressive model to Llama": Mistake(
        "export --checkpoint nar --format llama --output new", ("Llama", "autoregressive")
    ),
    "export: no checkpoint": Mistake("export --checkpoint nowhere --format llama --output new", ("nowhere",)),
    "export: output is there": Mistake("export --checkpoint ar --format llama --output data", ("data",)),
    "export: an unknown format": Mistake("export --checkpoint ar --format gguf --output new", ("gguf", "llama")),
    "import: no directory": Mistake("import nowhere --format llama --output new", ("nowhere/config.json", "Llama")),
    "import: a consolidated checkpoint": Mistake("import nar --format llama --output new", ("nar/config.json",)),
    "import: output is there": Mistake("import nowhere --format llama --output data", ("data", "--output")),
    "import: an unknown format": Mistake("import nowhere --format gguf --output new", ("gguf", "llama")),
    "import: another architecture": Mistake(
        "import llama --format llama --output new", ("llama/config.json", "mistral"), llama(model_type="mistral")
    ),
    "import: biases in attention": Mistake(
        "import llama --format llama --output new", ("llama/config.json", "attention_bias"), llama(attention_bias=True)
    ),
    "import: heads that do not divide": Mistake(
        "import llama --format llama --output new", ("heads", "3", "8"), llama(num_attention_heads=3)
    ),
    "import: no weights": Mistake(
        "import llama --format llama --output new", ("llama", "model.safetensors"), llama(head_dim=2)
    ),
}
