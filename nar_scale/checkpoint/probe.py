"""A recorded forward pass, by which a model that was written and read again can be told from the original."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nar_scale.errors import CheckpointError
from nar_scale.masking import hash_counters
from nar_scale.objectives import NonAutoregressiveWrapper, Wrapper

PROBE_FILE = "probe.safetensors"
_PROBE_LENGTH = 32
# rounding of the same arithmetic in another order, over the largest logit
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def probe_tokens(wrapper: Wrapper) -> Tensor:
    """Fixed token ids, int64 `[1, n]`, every other one masked for a non-autoregressive model."""
    n = min(_PROBE_LENGTH, wrapper.max_seq_len)
    bits = hash_counters(torch.arange(n))
    if isinstance(wrapper, NonAutoregressiveWrapper):
        tokens = bits % (wrapper.net.num_tokens - 1)
        tokens = tokens + (tokens >= wrapper.mask_id)
        return torch.where(torch.arange(n) % 2 == 0, tokens, wrapper.mask_id)[None]
    return (bits % wrapper.net.num_tokens)[None]


@torch.no_grad()
def run_probe(wrapper: Wrapper) -> dict[str, Tensor]:
    """The probe's tokens, int64 `[1, n]`, and the model's logits for them, in its dtype `[1, n, num_tokens]`."""
    was_training = wrapper.training
    wrapper.eval()
    tokens = probe_tokens(wrapper)
    logits = wrapper.net(tokens.to(wrapper.net.token_emb.weight.device))
    wrapper.train(was_training)
    return {"tokens": tokens, "logits": logits.cpu().contiguous()}


def save_probe(directory: Path, probe: dict[str, Tensor]) -> None:
    """Write a probe into a checkpoint."""
    save_file(probe, directory / PROBE_FILE)


def check_probe(directory: Path, wrapper: Wrapper) -> float:
    """Compare a model's logits with the recorded ones.

    Returns:
        the largest difference over the largest logit.

    Raises:
        CheckpointError: there is no record, or the logits differ by more than rounding.
    """
    path = directory / PROBE_FILE
    try:
        with safe_open(path, framework="pt") as file:
            tokens, recorded = file.get_tensor("tokens"), file.get_tensor("logits")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    original = next(wrapper.parameters()).dtype
    probe = run_probe(wrapper.to(recorded.dtype))
    wrapper.to(original)
    if not torch.equal(probe["tokens"], tokens):
        raise CheckpointError(f"{path} was recorded with other token ids; the model's vocabulary or length differs")
    difference = (probe["logits"].float() - recorded.float()).abs().max() / recorded.float().abs().max().clamp(min=1e-6)
    if not difference <= _TOLERANCE[recorded.dtype]:
        raise CheckpointError(
            f"{directory}: the model's logits differ from the recorded ones by {difference:.2g} of the largest; "
            "the weights are not those of the live model"
        )
    return float(difference)
