"""From requests to samples, for any kind of model."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nar_scale.checkpoint import LoadedModel
from nar_scale.config import SAMPLERS_OF_KIND, LeftToRightDecoding, SamplerConfig, SelfSpeculativeDecoding
from nar_scale.data import Tokenizer
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.generation.batch_size import BatchSize, FixedBatchSize
from nar_scale.generation.encoding import encode_request
from nar_scale.generation.requests import Request
from nar_scale.masking import Noise

Watch = Callable[[Request, list[int], int], None]
"""Is called after each network call with a request, its tokens so far, those of the prompt included, and the number of
the call, from 1. Samplers that fill in masks give the whole sequence, with mask tokens in it."""


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
        raise UserError(f"sampler {decoding.sampler} is not for a model of kind {kind}; use {', '.join(samplers)}")
    if decoding.stop and model.tokenizer is None:
        raise UserError("stop needs texts, but the checkpoint names no tokenizer; set data.tokenizer")
    if "" in decoding.stop:
        raise UserError("stop needs a text, not an empty one")
    if decoding.guidance != 1 and not model.wrapper.conditional:
        raise UserError("guidance needs a model with objective.num_classes or objective.prefix_length")
    longest = model.wrapper.max_seq_len
    if options.length is not None and options.length > longest:
        raise UserError(f"length {options.length} exceeds the model's maximum of {longest} tokens")
    return decoding


def generate_samples(
    model: LoadedModel,
    requests: Sequence[Request],
    options: SamplingOptions,
    batch_size: int,
    watch: Watch | None = None,
) -> Iterator[Sample]:
    """Generate a sample for each request, in order; a sample is the same in any batch.

    Sequences of similar lengths are generated together, padded to the longest of them.

    Args:
        model: what samples are drawn from.
        requests: each with a class if the model is conditional on one, see `check_requests`.
        options: how to sample.
        batch_size: sequences in a batch, at most.
        watch: is called after each network call, for each sequence of the batch.

    Raises:
        UserError: a prompt is too long, or of another kind than the model takes; there is guidance without a condition.
    """
    batches = generate_batches(model, requests, options, FixedBatchSize(batch_size), watch)
    return iter(sorted((sample for batch in batches for sample in batch), key=lambda sample: sample.request.number))


def generate_batches(
    model: LoadedModel,
    requests: Sequence[Request],
    options: SamplingOptions,
    sizes: BatchSize,
    watch: Watch | None = None,
) -> Iterator[list[Sample]]:
    """Generate a sample for each request, and give those of each batch as soon as they are there.

    Args:
        model: what samples are drawn from.
        requests: as in `generate_samples`.
        options: how to sample.
        sizes: says how large each batch may be. Where memory runs out, it is asked for smaller ones.
        watch: is called after each network call, for each sequence of the batch.

    Raises:
        UserError: as in `generate_samples`.
    """
    decoding = check_options(options, model)
    length = options.length or model.wrapper.max_seq_len
    encoded = [_Encoded(request, encode_request(request, model, length)) for request in requests]
    for waiting in _alike(encoded, model.wrapper.samples_padded):
        while waiting:
            batch = waiting[: sizes.next]
            begun = time.perf_counter()
            try:
                samples = list(_generate_batch(model, batch, decoding, options.seed, length, watch))
            except torch.OutOfMemoryError:
                if not sizes.shrink():
                    raise
                continue
            longest = max(len(sample.tokens) for sample in samples)
            work = len(batch) * longest * max(sample.network_calls for sample in samples)
            sizes.record(len(batch), work, time.perf_counter() - begun)
            waiting = waiting[len(batch) :]
            yield samples


def _alike(encoded: Sequence[_Encoded], padded: bool) -> Iterator[list[_Encoded]]:
    """Sequences by their length, together if they may be padded, else those of each length."""
    ordered = sorted(encoded, key=lambda item: (len(item.tokens), item.request.number))
    for _, together in groupby(ordered, key=lambda item: None if padded else len(item.tokens)):
        yield list(together)


def _generate_batch(
    model: LoadedModel,
    batch: Sequence[_Encoded],
    decoding: SamplerConfig,
    seed: int,
    length: int,
    watch: Watch | None,
) -> Iterator[Sample]:
    device = model.wrapper.net.token_emb.weight.device
    sizes = [len(item.tokens) for item in batch]
    given = pad_sequence([torch.tensor(item.tokens, device=device) for item in batch], batch_first=True)
    lengths = torch.tensor(sizes, device=device) if min(sizes) < max(sizes) else None
    noise = Noise.of_requests(seed, torch.tensor([item.request.number for item in batch], device=device))
    classes = [item.request.class_id for item in batch]
    continued = isinstance(decoding, (LeftToRightDecoding, SelfSpeculativeDecoding))
    samples = model.wrapper.sample(
        given,
        decoding,
        noise,
        length=length,
        lengths=lengths,
        classes=None if None in classes else torch.tensor(classes, device=device),
        end_token=model.info.decode.end_token,
        callback=None if watch is None else partial(_show, watch, batch, model.wrapper.fills_gaps, continued),
    )
    for item, tokens, network_calls in zip(batch, *samples):
        tokens, text = _until_stop(item.request, tokens, model.tokenizer, decoding.stop)
        yield Sample(item.request, tokens, text, network_calls)


def _show(
    watch: Watch, batch: Sequence[_Encoded], fills_gaps: bool, continued: bool, tokens: Tensor, call: int
) -> None:
    """Let `watch` see the rows of a batch, which are `continued` if they are only what follows the prompts."""
    for item, row in zip(batch, tokens.tolist()):
        size = len(item.tokens)
        if fills_gaps:
            shown = row[:size]
        else:
            prompt = item.tokens if item.request.prompt else []  # from scratch it is what a document begins after
            shown = prompt + (row if continued else row[size:])
        watch(item.request, shown, call)


def _until_stop(
    request: Request, tokens: list[int], tokenizer: Tokenizer | None, stop: Sequence[str]
) -> tuple[list[int], str | None]:
    """Tokens and text up to the first stop text that follows the prompt; gaps that are filled in have no end."""
    if tokenizer is None:
        return tokens, None
    text = tokenizer.decode(tokens)
    prompt = request.prompt or ""
    start = len(prompt) if text.startswith(prompt) else 0
    found = [place for one in stop if (place := text.find(one, start)) >= 0]
    if request.text is not None or not found:
        return tokens, text
    text = text[: min(found)]
    count = bisect_right(range(len(tokens) + 1), len(text), key=lambda first: len(tokenizer.decode(tokens[:first]))) - 1
    while not text.startswith(tokenizer.decode(tokens[:count])):  # part of a letter may look like another letter
        count -= 1
    return tokens[:count], text
