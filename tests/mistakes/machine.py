"""Mistakes of the machine: devices, disks, permissions and the environment."""

from pathlib import Path

from .mistake import Mistake

TRAIN = "train --config small.yaml"


def link_to_full_disk(here: Path) -> None:
    (here / "full.json").symlink_to("/dev/full")


MISTAKES = {
    "evaluate: a GPU that is not there": Mistake(
        "evaluate --checkpoint nar --data data --output e.json --device cuda", ("cuda", "cpu")
    ),
    "evaluate: an unknown device": Mistake(
        "evaluate --checkpoint nar --data data --output e.json --device gpu", ("gpu", "cpu")
    ),
    "generate: a GPU that is not there": Mistake(
        "generate --checkpoint nar --output new --num-samples 1 --device cuda", ("cuda", "cpu")
    ),
    "generate: an unknown device": Mistake(
        "generate --checkpoint nar --output new --num-samples 1 --device gpu", ("gpu", "cpu")
    ),
    "evaluate: a full disk": Mistake(
        "evaluate --checkpoint nar --data data --output full.json", ("full.json",), link_to_full_disk
    ),
    "evaluate: no folder for the result": Mistake(
        "evaluate --checkpoint nar --data data --output small.yaml/e.json", ("small.yaml/e.json",)
    ),
    "train: a run directory that cannot be": Mistake(f"{TRAIN} training.run_directory=/proc/run", ("/proc/run",)),
    "train: a run directory below a file": Mistake(
        f"{TRAIN} training.run_directory=small.yaml/run", ("small.yaml/run", "training.run_directory")
    ),
    "prepare: output that cannot be": Mistake("prepare --input corpus --output /proc/x --seq-len 32", ("/proc/x",)),
    "consolidate: output that cannot be": Mistake("consolidate --run run --output /proc/x", ("/proc/x",)),
    "export: output that cannot be": Mistake("export --checkpoint ar --format llama --output /proc/x", ("/proc/x",)),
    "generate: output that cannot be": Mistake(
        "generate --checkpoint nar --output /proc/x --num-samples 1", ("/proc/x",)
    ),
    "a rank without a master": Mistake(
        TRAIN, ("RANK", "MASTER_ADDR"), environment=(("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"))
    ),
    "a master that is no host": Mistake(
        TRAIN,
        ("n1..cluster", "MASTER_ADDR"),
        environment=(
            *(("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")),
            *(("MASTER_ADDR", "n1..cluster"), ("MASTER_PORT", "29500")),
        ),
    ),
    "a rank that is no number": Mistake(
        TRAIN,
        ("RANK", "first"),
        environment=(
            *(("RANK", "first"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")),
            *(("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")),
        ),
    ),
}
