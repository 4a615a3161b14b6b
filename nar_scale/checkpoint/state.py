"""The position of a run: step, samples, seed, and what it was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nar_scale.data.tokenizers import SpecialTokens
from nar_scale.errors import CheckpointError

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
        skipped_steps: of the steps taken, how many left the weights as they were, for want of a finite gradient.
        roll_backs: how often the run went back to a checkpoint; since the first, `samples` runs ahead of the steps.
        loss_scale: of fp16, as `training.partitions.loss_scale_of` gives it.
        special_tokens: how special tokens that a text spells out are encoded, see `HuggingFaceTokenizer`; "ids" where
            the file does not say.
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
    skipped_steps: int = 0
    roll_backs: int = 0
    loss_scale: dict[str, float] = field(default_factory=dict)
    special_tokens: SpecialTokens = "ids"

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
