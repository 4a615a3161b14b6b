"""From a training checkpoint, sharded by ZeRO, to a consolidated one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from nar_scale.checkpoint.exported import CONFIG_FILE, ModelInfo, describe_decoding, write_exported
from nar_scale.checkpoint.probe import PROBE_FILE
from nar_scale.checkpoint.store import CheckpointStore, find_damage
from nar_scale.checkpoint.zero import read_weights
from nar_scale.config import load_config
from nar_scale.errors import CheckpointError
from nar_scale.objectives import build_wrapper

STATE_FILE = "state.json"


@dataclass(frozen=True)
class TrainingState:
    """Where a run is; all that resuming needs besides weights and optimizer.

    Attributes:
        step: optimizer steps taken.
        samples: sequences the optimizer has consumed, which is the position in the stream.
        fingerprint: of the shards.
        seed: of the sample order and the masks.
        global_batch_size: sequences in a step.
        world_size: ranks that wrote the checkpoint.
        zero_stage: that sharded it.
        vocabulary_size: token ids in the data.
        tokenizer: `byte`, the absolute path of a tokenizer file, or None.
        end_token: ends a document; None if unknown.
        source_samples: of the samples consumed, how many came from each source of a mixture.
        skipped_samples: of the samples consumed, how many could not be used.
    """

    step: int
    samples: int
    fingerprint: str
    seed: int
    global_batch_size: int
    world_size: int
    zero_stage: int
    vocabulary_size: int
    tokenizer: str | None
    end_token: int | None
    source_samples: dict[str, int] = field(default_factory=dict)
    skipped_samples: int = 0

    def save(self, directory: Path) -> None:
        """Write `state.json` into a checkpoint."""
        (directory / STATE_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> TrainingState:
        """Read `state.json` of a checkpoint.

        Raises:
            CheckpointError: it is missing or not what this version writes.
        """
        try:
            return cls(**json.loads((directory / STATE_FILE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{directory / STATE_FILE} cannot be read: {error}") from None


def consolidate(run: str | Path, output: str | Path, step: int | None = None) -> float:
    """Write the consolidated checkpoint of a run.

    Args:
        run: the run directory.
        output: the directory to create.
        step: which checkpoint; the newest good one if not given.

    Returns:
        the largest difference between the logits of the reloaded and of the live model, over the largest logit.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, or logits that do not match.
    """
    run, output = Path(run), Path(output)
    store = CheckpointStore(run / "checkpoints")
    chosen = store.newest_good(report=print) if step is None else step
    if chosen not in store.steps():
        available = ", ".join(map(str, store.steps())) or "none"
        raise CheckpointError(
            f"{run} has no checkpoint{'' if step is None else f' of step {step}'}; steps: {available}"
        )
    checkpoint = store.path(chosen)
    if step is not None and (damage := find_damage(checkpoint)):
        raise CheckpointError(f"{checkpoint} is damaged: {damage}")

    config = load_config(checkpoint / CONFIG_FILE)
    state = TrainingState.load(checkpoint)
    wrapper = build_wrapper(config, state.vocabulary_size)
    weights = read_weights(checkpoint, state.zero_stage)
    with torch.no_grad():
        for name, parameter in wrapper.named_parameters():
            if name not in weights:
                raise CheckpointError(f"{checkpoint} lacks the weight {name!r} that its {CONFIG_FILE} describes")
            parameter.copy_(weights[name])
    average = None if config.training.ema_decay is None else read_weights(checkpoint, state.zero_stage, "ema")
    tokenizer_file = None if state.tokenizer in (None, "byte") else Path(str(state.tokenizer))
    if tokenizer_file is not None and not tokenizer_file.is_file():
        raise CheckpointError(f"the tokenizer of the run, {tokenizer_file}, is gone; put it back")
    info = ModelInfo(
        vocabulary_size=state.vocabulary_size,
        tokenizer=state.tokenizer if tokenizer_file is None else "tokenizer.json",
        step=state.step,
        samples=state.samples,
        dtype=config.training.precision,
        decode=describe_decoding(config, wrapper, state.end_token),
    )
    probe = load_file(checkpoint / PROBE_FILE)
    return write_exported(output, wrapper, config, info, probe, tokenizer_file, average=average)
