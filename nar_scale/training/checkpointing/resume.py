"""Where a run starts: at its newest good checkpoint, at one that is named, from other weights, or from nothing.

A damaged newest checkpoint falls back to an older one in `CheckpointStore.newest_good`. What may not change between
the saved run and this one is in `resume_rules`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from nar_scale.checkpoint import CheckpointStore, verify_integrity
from nar_scale.checkpoint.weights import StartingWeights, open_weights, steps_of_weights
from nar_scale.errors import CheckpointError
from nar_scale.training.distributed import World
from nar_scale.training.engine.zero_engine import ZeroEngine

_logger = logging.getLogger(__name__)


def find_checkpoint(store: CheckpointStore, resume: str, world: World) -> tuple[CheckpointStore, int | None]:
    """The checkpoint to resume from: its store and its step, which is None for a start from nothing.

    All ranks take part, each verifying some of the files. A job that SLURM has put back into its queue goes on from
    the newest good checkpoint of the run, if there is one, whatever its arguments have said the first time.

    Args:
        store: of this run.
        resume: `auto`, `never`, or the path of a checkpoint; where that is another run's, it is where this one starts,
            and is not gone back to.

    Raises:
        CheckpointError: there is none where one is asked for, none is good, or some are there that are not wanted.
    """
    # a shared directory can look different to other nodes for a while
    own_steps, pointer_exists = world.broadcast((store.steps(), store.pointer.exists()))
    if own_steps and int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        resume = "auto"
    if resume == "never":
        if own_steps:
            raise CheckpointError(
                f"{store.directory} holds checkpoints up to step {own_steps[-1]}; --resume never would overwrite "
                "them: remove them or set another training.run_directory"
            )
        return store, None
    if resume == "auto" and pointer_exists and not own_steps:
        raise CheckpointError(
            f"{store.pointer} is there, but no checkpoint: restore them, or remove it to start from nothing"
        )
    path = Path(resume)
    if resume == "auto" or (own_steps and path.parent.resolve() != store.directory.resolve()):
        return store, store.newest_good(
            report=lambda line: _logger.warning(line) if world.is_main else None,
            steps=own_steps,
            inspect=lambda path: _verify(path, world),
        )
    store = CheckpointStore(path.parent)
    steps = {store.path(step): step for step in world.broadcast(store.steps())}
    if path not in steps:
        raise CheckpointError(f"--resume {resume}: no checkpoint there; give RUN/checkpoints/step-NNNNNNNNN")
    problem = _verify(path, world)
    if problem is not None:
        raise CheckpointError(problem)
    return store, steps[path]


def start_from_weights(engine: ZeroEngine, path: Path) -> tuple[int, list[str]]:
    """Load into an engine the weights of a consolidated or of a training checkpoint, and nothing else of it.

    Returns:
        the steps that they were trained for, and what is not taken as it is, a sentence for each
        (`StartingWeights.remarks`).

    Raises:
        CheckpointError: neither is there, or it is damaged or holds another model.
    """
    with open_weights(path) as source:
        weights = StartingWeights(source, engine.module)
        engine.restore(weights)
    return steps_of_weights(path), weights.remarks()


def _verify(path: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, None if nothing; every rank verifies some of the files. A collective."""
    problems = world.gather(verify_integrity(path, (world.rank, world.size)))
    return next((problem for problem in problems if problem is not None), None)
