"""From requests to samples, for any kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from nar_scale.checkpoint import LoadedModel
from nar_scale.data import Tokenizer
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.generation.requests import Request, fill_gaps
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


def generate_samples(
    model: LoadedModel, requests: Sequence[Request], options: SamplingOptions, batch_size: int
) -> Iterator[Sample]:
    """Generate a sample for each request, in order; a sample is the same in any batch.

    Sequences of one length are generated together, so that none is padded.

    Args:
        model: what samples are drawn from.
        requests: each with a class if the model is conditional on one, see `assign_classes`.
        options: how to sample.
        batch_size: sequences in a batch, at most.

    Raises:
        UserError: a prompt is too long, or of another kind than the model takes; there is guidance without a condition.
    """
    if options.guidance is None:
        options = replace(options, guidance=model.info.decode.guidance_scale)
    elif options.guidance != 1 and not model.wrapper.conditional:
        raise UserError("--guidance needs a model with objective.num_classes or objective.prefix_length")
    length = options.length or model.wrapper.max_seq_len
    if length > model.wrapper.max_seq_len:
        raise UserError(f"--length {length} exceeds the model's maximum of {model.wrapper.max_seq_len} tokens")
    encoded = [_Encoded(request, _encode(request, model, length)) for request in requests]
    encoded.sort(key=lambda item: (len(item.tokens), item.request.number))
    samples: list[Sample] = []
    for _, same_length in groupby(encoded, key=lambda item: len(item.tokens)):
        waiting = list(same_length)
        for start in range(0, len(waiting), batch_size):
            samples += _generate_batch(model, waiting[start : start + batch_size], options)
    return iter(sorted(samples, key=lambda sample: sample.request.number))


def _encode(request: Request, model: LoadedModel, length: int) -> list[int]:
    """The tokens that the model is given: with mask tokens, or where it generates left to right, the prompt alone."""
    mask_id = model.info.decode.mask_id
    if request.text is not None:
        if mask_id is None:
            raise UserError("an autoregressive model cannot fill gaps; give a 'prompt' instead of a 'text'")
        tokens = fill_gaps(request.text, _tokenizer(model), mask_id)
        if mask_id not in tokens:
            raise UserError(f"the text {request.text!r:.60} has no <mask> gap to fill in")
    else:
        prompt = _tokenizer(model).encode(request.prompt.encode()).tolist() if request.prompt else []
        tokens = model.wrapper.start_from(prompt, length, model.info.decode.end_token)
    if len(tokens) > length or (mask_id is None and len(tokens) == length):
        raise UserError(
            f"the prompt {(request.prompt or request.text)!r:.60} has {len(tokens)} tokens, which leaves no room "
            f"within {length}"
        )
    return tokens


def _tokenizer(model: LoadedModel) -> Tokenizer:
    if model.tokenizer is None:
        raise UserError("the checkpoint names no tokenizer, so it takes no text prompts; set data.tokenizer")
    return model.tokenizer


def _generate_batch(model: LoadedModel, batch: list[_Encoded], options: SamplingOptions) -> Iterator[Sample]:
    device = model.wrapper.net.token_emb.weight.device
    given = torch.tensor([item.tokens for item in batch], device=device)
    noise = Noise.of_requests(options.seed, torch.tensor([item.request.number for item in batch], device=device))
    classes = [item.request.class_id for item in batch]
    samples = model.wrapper.sample(
        given,
        options,
        noise,
        classes=None if None in classes else torch.tensor(classes, device=device),
        end_token=model.info.decode.end_token,
    )
    for item, tokens, network_calls in zip(batch, *samples):
        text = None if model.tokenizer is None else model.tokenizer.decode(tokens)
        yield Sample(item.request, tokens, text, network_calls)
