"""Generation for whoever waits for it: results as they are made, without files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from nar_scale.checkpoint import LoadedModel, WeightKind
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.generation.opening import open_model
from nar_scale.generation.requests import Request
from nar_scale.generation.sampling import Watch, generate_samples

_SORTED_BATCHES = 4  # results come after so many batches, among which sequences of similar lengths are found


def generate_directly(
    checkpoint: str | Path,
    requests: Sequence[Request],
    options: SamplingOptions,
    *,
    batch_size: int = 16,
    device: torch.device | str | None = None,
    weights: WeightKind = "model",
    skip_faults: bool = False,
    watch_with: Callable[[LoadedModel], Watch] | None = None,
) -> Iterator[dict[str, Any]]:
    """Generate requests one after another, and give each result as soon as it is there.

    Args:
        checkpoint: the directory of a consolidated checkpoint.
        requests: what to generate.
        options: how to sample.
        batch_size: sequences in a forward pass, at most.
        device: of the model; if None, a GPU if there is one.
        weights: `model` for those of the last step, `ema` for their moving average.
        skip_faults: let the result of a request that has a fault be an `error`, instead of refusing all requests.
        watch_with: makes what watches from the model; each sequence is then generated alone.

    Returns:
        the results in order, each as a line of a worker's file holds it.

    Raises:
        UserError: an argument is out of range, the model makes images, or a request cannot be generated.
    """
    if batch_size < 1:
        raise UserError("the batch size must be at least 1")
    model, _, checked = open_model(
        Path(checkpoint), requests, options, device=device, weights=weights, skip_faults=skip_faults
    )
    if model.config.logging.image_shape is not None:
        raise UserError("this model makes images; give --output DIR, where they are drawn")
    watch = None if watch_with is None else watch_with(model)
    return _results(model, checked, options, batch_size if watch is None else 1, watch)


def _results(
    model: LoadedModel, requests: Sequence[Request], options: SamplingOptions, batch_size: int, watch: Watch | None
) -> Iterator[dict[str, Any]]:
    at_a_time = _SORTED_BATCHES * batch_size if watch is None else 1
    for start in range(0, len(requests), at_a_time):
        part = requests[start : start + at_a_time]
        sound = [request for request in part if request.fault is None]
        made = {
            sample.request.number: sample.as_dict()
            for sample in generate_samples(model, sound, options, batch_size, watch)
        }
        for request in part:
            yield made.get(request.number) or request.as_dict()
