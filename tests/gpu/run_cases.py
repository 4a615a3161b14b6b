"""Trains case after case in one process, since a start of DeepSpeed takes longer than a case.

    python -m tests.gpu.run_cases DIRECTORY NAME ...

DIRECTORY has a configuration for each name of shards (`words.yaml`) and weights for each kind of objective
(`weights/autoregressive`). It gets `runs/NAME` and `results/NAME.json`: what was observed, or a traceback as `problem`.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nar_scale.config import check_run, load_config
from nar_scale.files import write_atomically
from nar_scale.logging_setup import set_up_logging, silence_libraries
from nar_scale.training import World, connect, disconnect

from . import inside
from .cases import CASES, Case
from .observers import OBSERVERS, ON_GPU, Enough


def run_case(name: str, case: Case, directory: Path, world: World) -> dict[str, Any]:
    """Train what the case says, and return what was observed."""
    torch.use_deterministic_algorithms(case.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    observer = OBSERVERS[case.observe]()
    for settings in case.runs:
        config = load_config(
            directory / f"{case.data}.yaml", [*settings, f"training.run_directory={directory / 'runs' / name}"]
        )
        check_run(config)
        weights = directory / "weights" / config.objective.kind if case.from_weights else None
        with observer, suppress(Enough):
            inside.train_watched(config, world, observer.after_step, weights)
    return observer.found


def main(directory: Path, names: Sequence[str]) -> None:
    """Run the cases of these names."""
    set_up_logging()
    silence_libraries()
    if not ON_GPU:
        inside.train_as_on_gpus()
    world = connect()
    for name in names:
        print(f"== {name}", flush=True)
        try:
            found = json.dumps(run_case(name, CASES[name], directory, world))
        except Exception:
            found = json.dumps({"problem": traceback.format_exc()})
        write_atomically(directory / "results" / f"{name}.json", found.encode())
        gc.collect()
        if ON_GPU:
            torch.cuda.empty_cache()
    disconnect()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
