"""Left-to-right decoding of several tokens in a call of the network, with the distribution of one a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nar_scale.decoding.filters import LogitFilter, draw, filtered, is_greedy
from nar_scale.decoding.options import StepCallback
from nar_scale.decoding.predictor import Predictor, check_finite
from nar_scale.decoding.sequences import Prompts, Sequences
from nar_scale.decoding.speculative.drafts import Draft, Drafter, ModelDraft, PromptLookup
from nar_scale.decoding.speculative.verification import VerificationNoise, Verified, match, verify
from nar_scale.masking import Noise
from nar_scale.model import TransformerWrapper

_ACCEPT, _DRAFT = -1, -2  # streams of a request's noise; those of its drawn tokens are 0, 1, ...


class Continued(NamedTuple):
    """The result of `speculate`.

    Attributes:
        tokens: int64 `[batch, generated]`, without the prompts; the padding token follows the end token.
        network_calls: int64 `[batch]`, the calls of the network, not of the draft's, in which each sequence grew.
    """

    tokens: Tensor
    network_calls: Tensor


def speculate(
    net: TransformerWrapper,
    prompts: Prompts,
    seq_len: int,
    *,
    draft: TransformerWrapper | None,
    draft_tokens: int,
    noise: Noise,
    temperature: float,
    filters: Sequence[LogitFilter],
    eos_token: int | None,
    pad_value: int,
    seq_lens: Tensor | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    callback: StepCallback | None = None,
) -> Continued:
    """Sample up to `seq_len` tokens after each prompt from drafts that the network verifies (arXiv:2211.17192).

    A sequence has the distribution that `continue_prompts` gives it, and is the same in any batch. With prompt lookup
    it is the same sequence, token by token. Sequences that are finished leave the batch.

    Args:
        net: a causal network.
        prompts: the beginnings of the sequences.
        seq_len: tokens to generate at most.
        draft: a causal network with the same vocabulary; None for prompt lookup.
        draft_tokens: tokens that are drafted for a call, at most.
        conditions: further arguments of the network, which a draft does not see.
        noise, temperature, filters, eos_token, pad_value, seq_lens, callback: as in `continue_prompts`.

    Raises:
        ValueError: the sequences do not fit into `max_seq_len`, past which no window slides here.
        NumericalError: the network computes NaN or infinity.
    """
    batch, device = len(prompts.tokens), prompts.tokens.device
    sequences = Sequences(prompts, seq_len + draft_tokens)  # of which what is past seq_len is never kept
    limits = torch.full((batch,), seq_len, device=device) if seq_lens is None else seq_lens.to(device)
    predictor = Predictor(net, sequences, ahead=draft_tokens, conditions=conditions)
    ends = int((sequences.lengths + limits).max())
    _check_room(net, predictor.prefixed + ends)
    drafter: Drafter = PromptLookup(sequences)
    if draft is not None:
        _check_room(draft, ends)
        drafter = ModelDraft(Predictor(draft, sequences, ahead=draft_tokens), temperature, filters)
    numbers = _Numbers.of(noise, seq_len + draft_tokens)
    generated = torch.full((batch, seq_len + draft_tokens), pad_value, device=device)
    calls = torch.zeros(batch, dtype=torch.int64, device=device)
    rows, grown = torch.arange(batch, device=device), torch.zeros_like(calls)
    call = longest = 0
    going_on = limits > 0
    while True:
        if not bool(going_on.all()):
            left = going_on.nonzero()[:, 0]
            if not len(left):
                break
            rows, grown, limits, numbers = rows[left], grown[left], limits[left], numbers.select(left)
            for each in (sequences, predictor, drafter):
                each.select(left)
        places = grown[:, None] + torch.arange(draft_tokens + 1, device=device)
        here = numbers.at(places)
        proposed = drafter.draft(draft_tokens, here.draft[:, :-1])
        proposed = proposed._replace(counts=torch.minimum(proposed.counts, limits - 1 - grown))
        kept = _keep(proposed, predictor.followed_by(proposed.tokens), temperature, filters, here)
        gained = _up_to_end(kept.tokens, kept.accepted + 1, eos_token)
        generated[rows[:, None], places] = torch.where(places < (grown + gained)[:, None], kept.tokens, pad_value)
        calls[rows] += 1
        sequences.extend(kept.tokens.clamp(min=0), gained)
        predictor.keep()
        drafter.keep()
        grown = grown + gained
        call, longest = call + 1, max(longest, int(grown.max()))
        if callback is not None:
            callback(generated[:, :longest], call)
        going_on = grown < limits
        if eos_token is not None:
            going_on = going_on & (sequences.last[:, 0] != eos_token)
    check_finite(predictor.last_logits)
    return Continued(generated[:, :longest], calls)


class _Numbers(NamedTuple):
    """Random numbers in (0, 1) of each place of each sequence, float64 `[batch, places]`.

    Attributes:
        draw: for tokens drawn from the target, those that `continue_prompts` uses.
        accept: for whether a drafted token is kept.
        draft: for drafted tokens.
    """

    draw: Tensor
    accept: Tensor
    draft: Tensor

    @classmethod
    def of(cls, noise: Noise, places: int) -> _Numbers:
        streams = (noise, noise.derive(_ACCEPT), noise.derive(_DRAFT))
        return cls(*(stream.uniform_of_streams(places).T for stream in streams))

    def at(self, places: Tensor) -> _Numbers:
        return _Numbers(*(numbers.gather(1, places) for numbers in self))

    def select(self, rows: Tensor) -> _Numbers:
        return _Numbers(*(numbers[rows] for numbers in self))


def _keep(
    draft: Draft, logits: Tensor, temperature: float, filters: Sequence[LogitFilter], numbers: _Numbers
) -> Verified:
    """What is kept of a draft, given the target's logits before filters."""
    if draft.proposals is None or is_greedy(temperature):
        return match(draft.tokens, draw(logits, temperature, numbers.draw, filters), draft.counts)
    noise = VerificationNoise(numbers.draw, numbers.accept[:, :-1])
    logits = filtered(logits, filters)
    return verify(draft.tokens, logits, temperature, noise, proposals=draft.proposals, counts=draft.counts)


def _check_room(net: TransformerWrapper, longest: int) -> None:
    if longest > net.max_seq_len:
        raise ValueError(
            f"drafts do not go with a window that slides: a prompt and what is to follow it are {longest} tokens, more "
            f"than max_seq_len {net.max_seq_len}; generate fewer, or leave draft out"
        )


def _up_to_end(tokens: Tensor, counts: Tensor, eos_token: int | None) -> Tensor:
    """How many of the first `counts` tokens of each row stand before its first end token or are it, int64 `[batch]`."""
    if eos_token is None:
        return counts
    ends = (tokens == eos_token).long()
    return torch.minimum(counts, (ends.cumsum(dim=1) - ends == 0).sum(dim=1))
