"""Sequences of different lengths that grow at their ends."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Prompts:
    """The beginnings of a batch of sequences.

    Attributes:
        tokens: int64 `[batch, n]`, padded on the right.
        lengths: int64 `[batch]`, the length of each prompt; None if all have n tokens.
    """

    tokens: Tensor
    lengths: Tensor | None = None

    @classmethod
    def of(
        cls,
        prompts: Tensor | ListOf[Tensor],
        lengths: Tensor | None,
        num_tokens: int,
        device: torch.device,
        mask_id: int | None = None,
    ) -> Prompts:
        """Check prompts and bring them together.

        Args:
            prompts: int64 `[batch, n]` or `[n]`, padded on the right, or a list of `[n_i]`.
            lengths: int64 `[batch]`, true lengths of a tensor's rows; None for whole rows.
            num_tokens: size of the vocabulary.
            device: where the network is.
            mask_id: a token that stands for an unknown one, which cannot be continued; None if there is none.

        Raises:
            ValueError: there is no prompt, one is empty, a token is not in the vocabulary or the mask token, or lengths
                do not fit.
        """
        if isinstance(prompts, Tensor):
            tokens = prompts[None] if prompts.ndim == 1 else prompts
            if tokens.ndim != 2:
                raise ValueError(f"prompts of shape {list(prompts.shape)} are no batch of sequences; give [batch, n]")
        elif lengths is not None:
            raise ValueError("prompts in a list have their own lengths; leave prompt_lens out")
        elif not prompts:
            raise ValueError("the list of prompts is empty; give at least one")
        else:
            lengths = torch.tensor([len(prompt) for prompt in prompts])
            tokens = pad_sequence(list(prompts), batch_first=True)
        if tokens.is_floating_point():
            raise ValueError(f"prompts are token ids, not {tokens.dtype}")
        if lengths is not None and (lengths.shape != tokens.shape[:1] or bool((lengths > tokens.shape[1]).any())):
            raise ValueError(f"prompt_lens {lengths.tolist()} do not fit prompts of shape {list(tokens.shape)}")
        if not len(tokens):
            raise ValueError("there are no prompts; give at least one")
        if tokens.shape[1] == 0 or (lengths is not None and bool((lengths < 1).any())):
            raise ValueError("a prompt is empty; give at least one token, such as the end-of-document token")
        if lengths is not None:
            inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
            tokens = tokens.masked_fill(~inside, 0)
            lengths = None if bool((lengths == tokens.shape[1]).all()) else lengths.to(device)
        gaps = torch.zeros((), device=tokens.device) if mask_id is None else (tokens == mask_id).any()
        low, high, gap = torch.stack((*tokens.aminmax(), gaps.long())).tolist()  # the host waits once
        if low < 0 or high >= num_tokens:
            wrong = low if low < 0 else high
            raise ValueError(f"token {wrong} of a prompt is outside the vocabulary 0..{num_tokens - 1}")
        if gap:
            raise ValueError(f"a prompt has the mask token {mask_id}; only texts without gaps can be continued")
        return cls(tokens.to(device), lengths)

    def select(self, rows: Tensor) -> Prompts:
        """Some of the prompts, int64 `[new_batch]`."""
        return Prompts(self.tokens[rows], None if self.lengths is None else self.lengths[rows])


class Sequences:
    """A batch of sequences of different lengths, in a buffer that is allocated once.

    Args:
        prompts: the beginnings.
        room: tokens that each may grow by.

    Attributes:
        tokens: int64 `[batch, n + room]`; what stands past the end of a row is without meaning.
        lengths: int64 `[batch]`.
        longest: the largest of the lengths, known on the host.
        aligned: whether all have that length.
    """

    def __init__(self, prompts: Prompts, room: int):
        batch, self.longest = prompts.tokens.shape
        self.tokens = torch.nn.functional.pad(prompts.tokens, (0, room))
        self.aligned = prompts.lengths is None
        self.lengths = (
            torch.full((batch,), self.longest, device=self.tokens.device)
            if prompts.lengths is None
            else prompts.lengths.clone()
        )

    @property
    def last(self) -> Tensor:
        """The last token of each, int64 `[batch, 1]`."""
        if self.aligned:
            return self.tokens[:, self.longest - 1 : self.longest]
        return self.tokens.gather(1, self.lengths[:, None] - 1)

    def append(self, tokens: Tensor) -> None:
        """Add a token to each, int64 `[batch]`."""
        if self.aligned:
            self.tokens[:, self.longest] = tokens
        else:
            self.tokens.scatter_(1, self.lengths[:, None], tokens[:, None])
        self.lengths += 1
        self.longest += 1

    def extend(self, tokens: Tensor, counts: Tensor) -> None:
        """Add several tokens, a number of its own to each; the host waits.

        Args:
            tokens: int64 `[batch, n]`, of which the first count.
            counts: int64 `[batch]`, at most n.
        """
        places = self.lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self.tokens.scatter_(1, places, tokens)
        self.lengths = self.lengths + counts
        self._measure()

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the sequences; int64 `[new_batch]`, not empty."""
        self.tokens, self.lengths = self.tokens[rows], self.lengths[rows]
        if not self.aligned:
            self._measure()

    def window(self, size: int) -> tuple[Tensor, Tensor]:
        """The last tokens of each.

        Args:
            size: how many, at most.

        Returns:
            int64 `[batch, min(size, longest)]`, padded on the right, and the number of each row, int64 `[batch]`.
        """
        counts = self.lengths.clamp(max=size)
        columns = torch.arange(min(size, self.longest), device=self.tokens.device)
        return self.tokens.gather(1, (self.lengths - counts)[:, None] + columns), counts

    def _measure(self) -> None:
        shortest, self.longest = torch.stack(self.lengths.aminmax()).tolist()
        self.aligned = shortest == self.longest
