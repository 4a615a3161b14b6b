"""From requests to samples, for any kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from nar_scale.checkpoint import LoadedModel
from nar_scale.config import SAMPLERS_OF_KIND, SamplerConfig
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.generation.encoding import encode_request
from nar_scale.generation.requests import Request
from nar_scale.masking import Noise


@dataclass(frozen=True)
class Sample:
    """A generated sequence.

    Attributes:
        request: what was asked for.
        tokens: the token ids of the whole sequence, or of an autoregressive model those that follow the prompt.
        text: the tokens as text; None if the model has no tokenizer.
        network_calls: number of forward passes that the sequence took.
    """

    request: Request
    tokens: list[int]
    text: str | None
    network_calls: int

    def as_dict(self) -> dict[str, Any]:
        """The request and the sample as a line of results holds them."""
        text = {} if self.text is None else {"generated": self.text}
        return {**self.request.as_dict(), **text, "tokens": self.tokens, "network_calls": self.network_calls}


@dataclass(frozen=True)
class _Encoded:
    request: Request
    tokens: list[int]


def check_options(options: SamplingOptions, model: LoadedModel) -> SamplerConfig:
    """The settings that samples are drawn with; options that the model does not have are refused.

    Args:
        options: how to sample.
        model: whose weights are not looked at, so that it may be on the meta device.

    Raises:
        UserError: the length is more than the model's, the sampler is for other kinds of models, a setting is out of
            range, or there is guidance without a condition.
    """
    decoding = options.resolve(model.info.decode.decoding)
    samplers = SAMPLERS_OF_KIND[model.config.objective.kind]
    if decoding.sampler not in samplers:
        kind = model.config.objective.kind
        raise UserError(f"--sampler {decoding.sampler} is not for a model of kind {kind}; use {', '.join(samplers)}")
    if decoding.guidance != 1 and not model.wrapper.conditional:
        raise UserError("--guidance needs a model with objective.num_classes or objective.prefix_length")
    longest = model.wrapper.max_seq_len
    if options.length is not None and options.length > longest:
        raise UserError(f"--length {options.length} exceeds the model's maximum of {longest} tokens")
    return decoding


def generate_samples(
    model: LoadedModel, requests: Sequence[Request], options: SamplingOptions, batch_size: int
) -> Iterator[Sample]:
    """Generate a sample for each request, in order; a sample is the same in any batch.

    Sequences of one length are generated together, so that none is padded.

    Args:
        model: what samples are drawn from.
        requests: each with a class if the model is conditional on one, see `check_requests`.
        options: how to sample.
        batch_size: sequences in a batch, at most.

    Raises:
        UserError: a prompt is too long, or of another kind than the model takes; there is guidance without a condition.
    """
    decoding = check_options(options, model)
    length = options.length or model.wrapper.max_seq_len
    encoded = [_Encoded(request, encode_request(request, model, length)) for request in requests]
    encoded.sort(key=lambda item: (len(item.tokens), item.request.number))
    samples: list[Sample] = []
    for _, same_length in groupby(encoded, key=lambda item: len(item.tokens)):
        waiting = list(same_length)
        for start in range(0, len(waiting), batch_size):
            samples += _generate_batch(model, waiting[start : start + batch_size], decoding, options.seed, length)
    return iter(sorted(samples, key=lambda sample: sample.request.number))


def _generate_batch(
    model: LoadedModel, batch: list[_Encoded], decoding: SamplerConfig, seed: int, length: int
) -> Iterator[Sample]:
    device = model.wrapper.net.token_emb.weight.device
    given = torch.tensor([item.tokens for item in batch], device=device)
    noise = Noise.of_requests(seed, torch.tensor([item.request.number for item in batch], device=device))
    classes = [item.request.class_id for item in batch]
    samples = model.wrapper.sample(
        given,
        decoding,
        noise,
        length=length,
        classes=None if None in classes else torch.tensor(classes, device=device),
        end_token=model.info.decode.end_token,
    )
    for item, tokens, network_calls in zip(batch, *samples):
        text = None if model.tokenizer is None else model.tokenizer.decode(tokens)
        yield Sample(item.request, tokens, text, network_calls)
