"""The probe: a recorded forward pass of the live model, with which a model that was read again is compared."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nar_scale.errors import CheckpointError
from nar_scale.masking import hash_counters
from nar_scale.objectives import Objective, evaluating

PROBE_FILE = "probe.safetensors"
_PROBE_LENGTH = 32
# relative to the largest logit: what the same arithmetic in another order may differ by
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@torch.no_grad()
def run_probe(objective: Objective) -> dict[str, Tensor]:
    """Run a model in eval mode on fixed tokens.

    Returns:
        the `tokens`, int64 `[1, n]` with n up to 32, and on the CPU what the model makes of them (see
        `Objective.run_probe`), in the dtype of the model: at least the `logits`, `[1, n, num_tokens]`.
    """
    tokens = objective.probe_tokens(hash_counters(torch.arange(min(_PROBE_LENGTH, objective.max_seq_len))))[None]
    with evaluating(objective):
        outputs = objective.run_probe(tokens.to(objective.net.token_emb.weight.device))
    return {"tokens": tokens, **{name: output.cpu().contiguous() for name, output in outputs.items()}}


def save_probe(directory: Path, probe: dict[str, Tensor]) -> None:
    """Write a probe, as `run_probe` returns it, into the directory of a checkpoint."""
    (directory / PROBE_FILE).write_bytes(save(probe))  # the library's `save_file` lets nobody else read it


def load_probe(directory: Path) -> dict[str, Tensor]:
    """Read the probe of a checkpoint, as `run_probe` returned it.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = directory / PROBE_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def check_probe(directory: Path, objective: Objective) -> float:
    """Compare what a model computes with the recorded probe of a checkpoint.

    Args:
        directory: of the checkpoint.
        objective: is converted to the dtype of the record for the comparison.

    Returns:
        the largest difference, relative to the largest value of its kind.

    Raises:
        CheckpointError: there is no record, or the values differ by more than rounding.
    """
    path = directory / PROBE_FILE
    recorded = load_probe(directory)
    original = next(objective.parameters()).dtype
    dtype = recorded["logits"].dtype
    probe = run_probe(objective.to(dtype))
    objective.to(original)
    if set(probe) != set(recorded) or not torch.equal(probe["tokens"], recorded["tokens"]):
        raise CheckpointError(f"{path} was recorded by another kind of model, or one of another vocabulary or length")
    difference = max(_difference(probe[name], recorded[name]) for name in recorded if name != "tokens")
    if not difference <= _TOLERANCE[dtype]:
        raise CheckpointError(
            f"{directory}: the model's logits differ from the recorded ones by {difference:.2g} of the largest; "
            "the weights are not those of the live model"
        )
    return difference


def compared(difference: float, other: str) -> str:
    """How logits compare with those of another model, as the rest of a sentence.

    Args:
        difference: the largest one, relative to the largest logit.
        other: the other model.
    """
    if difference == 0:
        return f"are exactly those of {other}"
    return f"differ from those of {other} by {difference:.1g} times the largest logit at most"


def _difference(ours: Tensor, recorded: Tensor) -> float:
    """The largest difference, relative to the largest recorded value."""
    largest = recorded.float().abs().max().clamp(min=1e-6)
    return float((ours.float() - recorded.float()).abs().max() / largest)
