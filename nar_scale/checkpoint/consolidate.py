"""From a training checkpoint, in the pieces that its ranks have written, to a consolidated one."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nar_scale.checkpoint.consolidated import CONFIG_FILE, ModelInfo, write_consolidated
from nar_scale.checkpoint.model_card import model_card, recorded_likelihoods
from nar_scale.checkpoint.partitions import WEIGHT, PartitionReader
from nar_scale.checkpoint.probe import load_probe
from nar_scale.checkpoint.state import STATE_FILE, TrainingState
from nar_scale.checkpoint.store import CheckpointStore, verify_integrity
from nar_scale.config import load_config
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import CheckpointError, UserError
from nar_scale.objectives import build_wrapper
from nar_scale.processes import send_when_parent_ends

EMA = "ema"
"""Kind of the moving average of the weights among the optimizer's state."""

_logger = logging.getLogger(__name__)


def consolidate(
    run: str | Path,
    output: str | Path,
    step: int | None = None,
    license: str | None = None,
    progress: bool = True,
) -> float:
    """Write the consolidated checkpoint of a run.

    Args:
        run: the run directory.
        output: the directory to create.
        step: which checkpoint; the newest good one if not given.
        license: of the model, for its card; `checkpoint.license` of the run if not given.
        progress: show progress bars if standard error is a terminal.

    Returns:
        the largest difference between the logits of the reloaded and of the live model, over the largest logit.

    Raises:
        CheckpointError: no run directory, no such checkpoint, a damaged one, or logits that do not match.
    """
    run, output = Path(run), Path(output)
    if not (run / "checkpoints").is_dir():
        raise CheckpointError(f"{run} is not a run directory with checkpoints; give one such as runs/quickstart_nar")
    store = CheckpointStore(run / "checkpoints")
    verify = partial(verify_integrity, progress=progress)
    chosen = store.newest_good(report=_logger.warning, inspect=verify) if step is None else step
    if chosen not in store.steps():
        available = ", ".join(map(str, store.steps())) or "none"
        raise CheckpointError(
            f"{run} has no checkpoint{'' if step is None else f' of step {step}'}; steps: {available}"
        )
    checkpoint = store.path(chosen)
    if step is not None and (damage := verify(checkpoint)):
        raise CheckpointError(f"{checkpoint} is damaged: {damage}")

    config = load_config(checkpoint / CONFIG_FILE)
    state = TrainingState.load(checkpoint)
    with torch.device("meta"):
        wrapper = build_wrapper(config, state.vocabulary_size)
    tokenizer_file = None if state.tokenizer in (None, "byte") else Path(str(state.tokenizer))
    if tokenizer_file is not None and not tokenizer_file.is_file():
        raise CheckpointError(f"the tokenizer of the run, {tokenizer_file}, is gone; put it back")
    if tokenizer_file is not None and not _is_tokenizer(tokenizer_file):
        raise CheckpointError(
            f"{tokenizer_file}, which {checkpoint / STATE_FILE} names as the tokenizer, is none, and is not copied"
        )
    info = ModelInfo(
        vocabulary_size=state.vocabulary_size,
        tokenizer=state.tokenizer if tokenizer_file is None else "tokenizer.json",
        step=state.step,
        samples=state.samples,
        dtype=config.training.precision,
        decode=DecodeManifest.of(config, wrapper.mask_id, state.end_token),
        special_tokens=state.special_tokens,
        likelihoods=recorded_likelihoods(run, state.step),
        license=license or config.checkpoint.license,
    )
    probe = load_probe(checkpoint)
    with PartitionReader(checkpoint) as reader:
        weights = _OneAtATime(reader, WEIGHT)
        lacking = [name for name, _ in wrapper.named_parameters() if name not in weights]
        if lacking:
            raise CheckpointError(f"{checkpoint} lacks the weight {lacking[0]!r} that its {CONFIG_FILE} describes")
        average = None if config.training.ema_decay is None else _OneAtATime(reader, EMA)
        return write_consolidated(
            output,
            wrapper,
            config,
            info,
            probe,
            tokenizer_file,
            weights=weights,
            average=average,
            progress=progress,
            card=model_card(run.resolve().name, config, info, wrapper),
        )


def _is_tokenizer(path: Path) -> bool:
    """Whether a file is a `tokenizer.json`: a checkpoint of strangers can name any file of this machine."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("model"), dict)


def consolidate_as_command(run: str, output: str, step: str, parent: str) -> None:
    """The same as all that a process beside a run does: a problem is reported in one line, and by exit status 1.

    It is given up, leaving nothing, when the process is asked to end or the one that started it is gone.
    """
    end_with_parent(int(parent))
    try:
        consolidate(run, output, int(step), progress=False)  # the terminal is the run's
    except UserError as error:
        _logger.error("consolidation of step %s: error: %s", step, error)
        sys.exit(1)


def end_with_parent(parent: int) -> None:
    """Leave this process, by way of all `finally`, at a SIGTERM; Linux sends one when the parent ends."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    send_when_parent_ends(signal.SIGTERM)
    if os.getppid() != parent:  # it has ended before
        sys.exit(1)


class _OneAtATime(Mapping[str, Tensor]):
    """Weights, or another kind of state, that are read when they are asked for, in float32."""

    def __init__(self, reader: PartitionReader, kind: str):
        self._reader, self._kind = reader, kind
        self._names = dict.fromkeys(name for name, kinds in reader.kinds.items() if kind in kinds)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.whole(self._kind, name).float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
