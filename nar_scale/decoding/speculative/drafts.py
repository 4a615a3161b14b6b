"""Where drafts of speculative decoding come from: a smaller model, or the sequence itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nar_scale.decoding.filters import LogitFilter, filtered
from nar_scale.decoding.predictor import Predictor
from nar_scale.decoding.sequences import Sequences
from nar_scale.decoding.speculative.verification import propose


class Draft(NamedTuple):
    """Tokens that may follow sequences.

    Attributes:
        tokens: int64 `[batch, n]`.
        counts: int64 `[batch]`, how many of each row are a draft.
        proposals: what each was drawn from, float64 `[batch, n, num_tokens]`; None for tokens not drawn at random.
    """

    tokens: Tensor
    counts: Tensor
    proposals: Tensor | None


class Drafter(Protocol):
    """Drafts tokens for sequences that others add to and select from."""

    def draft(self, count: int, uniform: Tensor) -> Draft:
        """Draft tokens, each row as if it stood alone.

        Args:
            count: how many, at most.
            uniform: random numbers in (0, 1), float64 `[batch, count]`.
        """

    def keep(self) -> None:
        """Take note that tokens have been added to the sequences."""

    def select(self, rows: Tensor) -> None:
        """Keep some of the rows, as those of the sequences; int64 `[new_batch]`."""


class ModelDraft:
    """Drafts of another model, each token in a call of its own.

    Args:
        predictor: the model, with a cache, for the sequences that are continued.
        temperature: of the draft; that of the request refuses least.
        filters: of the draft, applied one after another; those of the request refuse least.
    """

    def __init__(self, predictor: Predictor, temperature: float, filters: Sequence[LogitFilter]):
        self._predictor, self._temperature, self._filters = predictor, temperature, filters

    def draft(self, count: int, uniform: Tensor) -> Draft:
        """Draft `count` tokens for each sequence; see `Drafter`."""
        logits = self._predictor.followed_by(self._predictor.sequences.tokens[:, :0])
        tokens, proposals = [], []
        for place in range(count):
            logits = filtered(logits[:, -1], self._filters)
            token, proposed = propose(logits, self._temperature, uniform[:, place])
            tokens.append(token)
            proposals.append(proposed)
            logits = self._predictor.further(token[:, None])  # the last time for its keys and values alone
        counts = torch.full_like(tokens[0], count)
        return Draft(torch.stack(tokens, dim=1), counts, torch.stack(proposals, dim=1))

    def keep(self) -> None:
        """Drop keys and values of tokens that were refused."""
        self._predictor.keep()

    def select(self, rows: Tensor) -> None:
        """Keep some of the rows; see `Drafter`."""
        self._predictor.select(rows)


class PromptLookup:
    """Drafts of what followed the last tokens of a sequence where they stood before.

    Args:
        sequences: that are continued.
        longest_match: tokens that are looked for, at most; fewer, down to one, where these are not found.
    """

    def __init__(self, sequences: Sequences, longest_match: int = 3):
        self._sequences, self._longest_match = sequences, longest_match

    def draft(self, count: int, uniform: Tensor) -> Draft:
        """Draft what followed the latest of the longest matches, nothing if there is none; see `Drafter`."""
        tokens, lengths = self._sequences.tokens[:, : self._sequences.longest], self._sequences.lengths[:, None]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        matches = places < lengths - 1  # the place of the last token of a match, which something follows
        start = torch.full_like(lengths, -1)
        for back in range(self._longest_match):
            wanted = tokens.gather(1, (lengths - 1 - back).clamp(min=0))
            shifted = tokens.roll(back, dims=1)
            matches = matches & (shifted == wanted) & (places >= back) & (back < lengths)
            latest = torch.where(matches, places, -1).amax(dim=1, keepdim=True)
            start = torch.where(latest >= 0, latest, start)
        following = start + 1 + torch.arange(count, device=tokens.device)
        counts = torch.where(start >= 0, (lengths - 1 - start).clamp(max=count), 0)[:, 0]
        return Draft(tokens.gather(1, following.clamp(max=tokens.shape[1] - 1)), counts, None)

    def keep(self) -> None:
        """Nothing to do; see `Drafter`."""

    def select(self, rows: Tensor) -> None:
        """Nothing to do, since the sequences have been selected; see `Drafter`."""
