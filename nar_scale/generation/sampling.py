"""From requests to tokens, for either kind of model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from nar_scale.checkpoint import LoadedModel
from nar_scale.data import Tokenizer
from nar_scale.decoding import Demasked, Sampler
from nar_scale.errors import UserError
from nar_scale.generation.requests import Request, fill_gaps
from nar_scale.masking import Noise
from nar_scale.objectives import NonAutoregressiveWrapper


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample.

    Attributes:
        temperature: of the distributions; falls to 0 with the `confidence` sampler.
        sampler: `confidence` or `random` (non-autoregressive).
        steps: network calls a sequence (non-autoregressive); the model's own number if None.
        top_k: fraction of the vocabulary that stays eligible at each token.
        length: tokens of a sequence, prompt included; the model's maximum if None.
        seed: of all randomness.
        guidance: scale of classifier-free guidance (non-autoregressive); the model's own if None.

    Raises:
        UserError: a number out of range.
    """

    temperature: float = 1.0
    sampler: Sampler = "confidence"
    steps: int | None = None
    top_k: float = 1.0
    length: int | None = None
    seed: int = 0
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name, valid in (
            ("temperature", self.temperature >= 0),
            ("steps", self.steps is None or self.steps >= 1),
            ("top_k", 0 < self.top_k <= 1),
            ("length", self.length is None or self.length >= 1),
            ("guidance", self.guidance is None or self.guidance >= 0),
        ):
            if not valid:
                raise UserError(f"--{name.replace('_', '-')} cannot be {getattr(self, name)}")

    def as_dict(self) -> dict[str, Any]:
        """The options by name."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """A generated sequence.

    Attributes:
        tokens: the whole sequence, or for an autoregressive model what follows the prompt.
        text: the tokens as text; None if the model has no tokenizer.
        network_calls: forward passes it took.
    """

    request: Request
    tokens: list[int]
    text: str | None
    network_calls: int

    def as_dict(self) -> dict[str, Any]:
        """What goes into a line of results."""
        text = {} if self.text is None else {"generated": self.text}
        return {**self.request.as_dict(), **text, "tokens": self.tokens, "network_calls": self.network_calls}


@dataclass(frozen=True)
class _Encoded:
    request: Request
    tokens: list[int]


def generate_samples(
    model: LoadedModel, requests: Sequence[Request], options: SamplingOptions, batch_size: int
) -> Iterator[Sample]:
    """Generate all requests, in order; the same for a request in any batch.

    Sequences of one length go into a batch together, so that none is padded.

    Args:
        requests: with a class each where the model is conditional on one, see `assign_classes`.

    Raises:
        UserError: a prompt that is too long, or of the wrong kind for the model; guidance without a condition.
    """
    objective = model.config.objective
    if options.guidance not in (None, 1) and objective.num_classes is None and not objective.prefix_length:
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
            samples += _generate_batch(model, waiting[start : start + batch_size], options, length)
    return iter(sorted(samples, key=lambda sample: sample.request.number))


def _encode(request: Request, model: LoadedModel, length: int) -> list[int]:
    """The given tokens, with masks in the gaps and behind the prompt for a non-autoregressive model."""
    mask_id = model.info.decode.mask_id
    if request.text is not None:
        if mask_id is None:
            raise UserError("an autoregressive model cannot fill gaps; give a 'prompt' instead of a 'text'")
        tokens = fill_gaps(request.text, _tokenizer(model), mask_id)
        if mask_id not in tokens:
            raise UserError(f"the text {request.text!r:.60} has no <mask> gap to fill in")
    else:
        tokens = _tokenizer(model).encode(request.prompt.encode()).tolist() if request.prompt else []
        if mask_id is None:
            tokens = tokens or [model.info.decode.end_token or 0]
        else:
            tokens += [mask_id] * (length - len(tokens))
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


def _generate_batch(
    model: LoadedModel, batch: list[_Encoded], options: SamplingOptions, length: int
) -> Iterator[Sample]:
    device = model.wrapper.net.token_emb.weight.device
    given = torch.tensor([item.tokens for item in batch], device=device)
    noise = Noise.of_requests(options.seed, torch.tensor([item.request.number for item in batch], device=device))
    classes = [item.request.class_id for item in batch]
    asked = None if None in classes else torch.tensor(classes, device=device)
    for item, tokens, calls in zip(batch, *_run(model, given, asked, noise, options, length)):
        text = None if model.tokenizer is None else model.tokenizer.decode(tokens)
        yield Sample(item.request, tokens, text, calls)


def _run(
    model: LoadedModel, given: Tensor, classes: Tensor | None, noise: Noise, options: SamplingOptions, length: int
) -> tuple[list[list[int]], list[int]]:
    """Tokens and network calls of each sequence."""
    wrapper = model.wrapper
    if isinstance(wrapper, NonAutoregressiveWrapper):
        result = wrapper.generate(
            prompt=given,
            start_temperature=options.temperature,
            filter_thres=1 - options.top_k,
            sampler=options.sampler,
            steps=options.steps,
            noise=noise,
            classes=classes,
            guidance_scale=model.config.objective.guidance_scale if options.guidance is None else options.guidance,
            return_network_calls=True,
        )
        tokens, calls = cast(Demasked, result)
        return tokens.tolist(), calls.tolist()
    end_token = model.info.decode.end_token
    generated = wrapper.generate(
        given,
        length - given.shape[1],
        eos_token=end_token,
        temperature=options.temperature,
        filter_kwargs={"frac_num_tokens": options.top_k},
        return_prompt=False,
        noise=noise,
    )
    rows = generated.tolist()
    ends = [row.index(end_token) if end_token in row else None for row in rows]
    return [row[:end] for row, end in zip(rows, ends)], [
        len(row[:end]) + (end is not None) for row, end in zip(rows, ends)
    ]
