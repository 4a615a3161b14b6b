"""A recorded forward pass, by which a model that was written and read again can be told from the original."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
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
    """The probe's tokens, int64 `[1, n]`, and what the model makes of them, in its dtype.

    `logits` `[1, n, num_tokens]`; for a non-autoregressive model those of a second pass, conditioned on the first,
    and the `judgement` of its critic `[1, n]`, if it has one.
    """
    was_training = wrapper.training
    wrapper.eval()
    tokens = probe_tokens(wrapper)
    on_device = tokens.to(wrapper.net.token_emb.weight.device)
    outputs = {}
    if isinstance(wrapper, NonAutoregressiveWrapper):
        classes = None if wrapper.num_classes is None else on_device.new_tensor([wrapper.num_classes - 1])
        _, embeddings = wrapper.predict(on_device, classes=classes)
        outputs["logits"], _ = wrapper.predict(on_device, embeddings, classes)
        if wrapper.token_critic is not None:
            outputs["judgement"] = wrapper.judge(on_device, classes)
    else:
        outputs["logits"] = wrapper.net(on_device)
    wrapper.train(was_training)
    return {"tokens": tokens, **{name: output.cpu().contiguous() for name, output in outputs.items()}}


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
            recorded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    original = next(wrapper.parameters()).dtype
    dtype = recorded["logits"].dtype
    probe = run_probe(wrapper.to(dtype))
    wrapper.to(original)
    if set(probe) != set(recorded) or not torch.equal(probe["tokens"], recorded["tokens"]):
        raise CheckpointError(f"{path} was recorded by another kind of model, or one of another vocabulary or length")
    difference = max(_difference(probe[name], recorded[name]) for name in recorded if name != "tokens")
    if not difference <= _TOLERANCE[dtype]:
        raise CheckpointError(
            f"{directory}: the model's logits differ from the recorded ones by {difference:.2g} of the largest; "
            "the weights are not those of the live model"
        )
    return difference


def _difference(ours: Tensor, recorded: Tensor) -> float:
    """The largest difference over the largest value."""
    largest = recorded.float().abs().max().clamp(min=1e-6)
    return float((ours.float() - recorded.float()).abs().max() / largest)
