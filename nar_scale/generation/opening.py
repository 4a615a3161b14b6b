"""A model and what it is asked for, checked against each other before the weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from nar_scale.checkpoint import LoadedModel, WeightKind, describe_consolidated, load_weights
from nar_scale.config import SamplerConfig
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.generation.encoding import check_requests, refuse_faults
from nar_scale.generation.requests import Request
from nar_scale.generation.sampling import check_options
from nar_scale.model.devices import find_device

_logger = logging.getLogger(__name__)


def open_model(
    checkpoint: Path,
    requests: Sequence[Request],
    options: SamplingOptions,
    *,
    device: torch.device | str | None,
    weights: WeightKind,
    skip_faults: bool,
) -> tuple[LoadedModel, SamplerConfig, list[Request]]:
    """Load a model that can generate what is asked for.

    Args:
        checkpoint: the directory of a consolidated checkpoint.
        requests: at least one.
        options: how to sample.
        device: of the model; if None, a GPU if there is one.
        weights: `model` or `ema`.
        skip_faults: keep requests that have a fault, or that the model cannot take, instead of refusing all.

    Returns:
        the model, the settings that samples are drawn with, and the requests with their classes and faults.

    Raises:
        UserError: there is no request or no such device, the options do not fit the model, or a request cannot be
            generated.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    if not requests:
        raise UserError("the number of requests must be at least 1")
    found = find_device(device)
    model = describe_consolidated(checkpoint)
    decoding = check_options(options, model)
    checked = check_requests(requests, model, options.length or model.wrapper.max_seq_len)
    faults = sum(request.fault is not None for request in checked)
    if faults and not skip_faults:
        refuse_faults(checked)
    if faults:
        _logger.warning("%d of %d prompts cannot be used; their results say why", faults, len(checked))
    load_weights(model, checkpoint, found, kind=weights)
    return model, decoding, checked
