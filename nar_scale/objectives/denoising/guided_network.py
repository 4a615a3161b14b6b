"""`GuidedNetwork`: what decoding asks a denoiser, under conditions, guidance and a cache."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from nar_scale.errors import ConfigError
from nar_scale.model import KeyValueCache
from nar_scale.objectives.denoising.denoiser import Denoiser

_TILE = 16  # tokens; matrix products of fewer than 12 rows are rounded in another way on CPUs
_OF_TOKENS = ("mask", "documents", "positions")  # arguments `[batch, n]`


class GuidedNetwork:
    """The predictions of a denoiser for one batch, with its conditions and the embeddings of the call before.

    Under classifier-free guidance (arXiv:2207.12598) the logits are u + scale (c - u), with the conditional logits c
    and the unconditional ones u, which come from one network call with a batch of twice the size. The head is linear,
    so that embeddings are combined in their place, which is half the work.

    The last feed-forward layer runs in `read`, for the tokens that are asked about alone, unless embeddings are needed
    before. A batch of one and the same sequence, as from scratch, takes the pass of one.

    Args:
        denoiser: the network with its conditions.
        tokens: int64 `[batch, n]`, as many sequences and tokens of each as the smallest call has.
        scale: 1 for the conditional logits, 0 for the unconditional ones.
        classes: int64 `[batch]`, with `num_classes`.
        net_kwargs: further arguments of the network; tensors `[batch, ...]`.
        compile: whether the network runs through `torch.compile`, a static graph for each shape.
        cache: keys and values of earlier blocks. It is left at the length that it has.

    Raises:
        ValueError: guidance without a condition.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tokens: Tensor,
        scale: float = 1.0,
        classes: Tensor | None = None,
        net_kwargs: dict[str, Any] | None = None,
        compile: bool = False,
        cache: KeyValueCache | None = None,
    ):
        if scale != 1 and not denoiser.conditional:
            raise ValueError("guidance_scale needs a condition: num_classes or prefix_length")
        self.denoiser, self.scale, self.length, self.cache = denoiser, scale, tokens.shape[1], cache
        self.num_tokens, self.shrinks = denoiser.net.num_tokens, not compile
        self._classes, self._net_kwargs = classes, net_kwargs or {}
        self._previous: Tensor | None = None
        self._unfinished = scale == 1 and not denoiser.self_cond
        self._embed = denoiser.compiled_embed() if compile else denoiser.embed
        self._batch = len(tokens)
        self.select(torch.arange(len(tokens), device=tokens.device))

    def embed(self, tokens: Tensor, shadows: bool = False) -> Tensor:
        """Embeddings of tokens; see `nar_scale.decoding.Network`."""
        past = 0 if self.cache is None else self.cache.longest
        if len(tokens) > 1 and past == 0 and self._alike(tokens):
            return self._embed_one(tokens, shadows)
        tokens, arguments = self._fill(tokens), self._net_kwargs
        if shadows:
            tokens, arguments = self._with_shadows(tokens, past)
        hidden = self._run(tokens, arguments, self._unfinished)
        if self.cache is not None:
            self.cache.truncate(past)
        if self.denoiser.self_cond:
            self._previous = hidden
        if self.scale != 1:
            conditional, unconditional = hidden.float().chunk(2)
            hidden = (unconditional + self.scale * (conditional - unconditional)).type_as(hidden)
        return hidden[: len(hidden) - self._spare]

    def remember(self, tokens: Tensor, block_size: int) -> None:
        """Keep keys and values of tokens that are final, int64 `[batch, n]`: whole blocks, of which none sees a later.

        Args:
            tokens: what follows the tokens in the cache.
            block_size: tokens in a block.
        """
        one = tokens.shape[1] <= block_size
        rule = {} if one else {"rule": lambda query, key: key // block_size <= query // block_size}
        causal = self.denoiser.net.causal  # of a hybrid, whose true tokens see their past alone
        self._run(self._fill(tokens), {**self._net_kwargs, **rule, "causal": causal}, unfinished=True)

    def read(self, embeddings: Tensor, reduce: Callable[..., Tensor], *per_row: Tensor) -> Tensor:
        """What `reduce` makes of the logits of embeddings; see `nar_scale.decoding.Network`."""
        net = self.denoiser.net
        return net.to_logits(net.finish(embeddings) if self._unfinished else embeddings, reduce, *per_row)

    def judge(self, tokens: Tensor) -> Tensor:
        """The critic's logits; see `nar_scale.decoding.Network`."""
        return self.denoiser.critic_logits(self._fill(tokens), self._classes, **self._net_kwargs)[: len(tokens)]

    def select(self, rows: Tensor) -> None:
        """Keep these sequences of the batch; see `nar_scale.decoding.Network`."""
        self._spare = max(0, -(-_TILE // self.length) - len(rows)) if len(rows) else 0
        rows = torch.cat((rows, rows[:1].expand(self._spare)))
        doubled = self._doubled(rows)
        self._classes = _rows_of(self._classes, rows)
        self._net_kwargs = {name: _rows_of(value, rows) for name, value in self._net_kwargs.items()}
        self._previous = _rows_of(self._previous, doubled)
        if self.cache is not None and self.cache.started:
            self.cache.select(doubled)
        self._batch = len(rows)

    def subset(self, rows: Tensor) -> GuidedNetwork:
        """A network for some sequences of the batch, int64 `[new_batch]`, which has a cache of its own."""
        part = copy(self)
        if self.cache is not None:
            part.cache = KeyValueCache(self.cache.capacity)
            for name, buffer in self.cache.named_buffers():
                part.cache.register_buffer(name, buffer.clone() if name == "lengths" else buffer)
            part.cache.longest = self.cache.longest
        if len(rows) < self._batch - self._spare:
            part.select(rows)
        return part

    def adopt(self, rows: Tensor, part: GuidedNetwork, start: int) -> None:
        """Take over the keys and values of a subset from a position on.

        Args:
            rows: those that it was made with.
            part: the subset, which has all its sequences still.
            start: the position of the first of the tokens.
        """
        if self.cache is None or part.cache is None:
            return
        end, theirs = part.cache.longest, part._doubled(torch.arange(len(rows), device=rows.device))
        whole = len(rows) == self._batch - self._spare
        for name, new in part.cache.named_buffers():
            if whole or name not in dict(self.cache.named_buffers()):
                size = len(self._doubled(torch.arange(self._batch, device=rows.device)))
                self.cache.register_buffer(name, new if whole else new.new_zeros(size, *new.shape[1:]))
            if not whole and name != "lengths":
                self.cache.get_buffer(name)[self._doubled(rows), :, start:end] = new[theirs, :, start:end]
        self.cache.truncate(end)

    def _alike(self, tokens: Tensor) -> bool:
        """Whether all sequences are the same, and what the network is given beside them."""
        given = (tokens, self._classes, self._previous, *self._net_kwargs.values())
        return all(bool((each == each[:1]).all()) for each in given if isinstance(each, Tensor))

    def _embed_one(self, tokens: Tensor, shadows: bool) -> Tensor:
        """What `embed` returns of sequences that are all the same."""
        rows = torch.zeros_like(tokens[:, 0])
        one = self.subset(rows[:1])
        hidden = one.embed(tokens[:1], shadows)
        self._previous = _rows_of(one._previous, one._doubled(rows.new_zeros(self._batch)))
        return hidden.expand(len(tokens), -1, -1)

    def _run(self, tokens: Tensor, arguments: dict[str, Any], unfinished: bool) -> Tensor:
        """One pass of the network, with twice the batch under guidance."""
        classes = self._classes
        if self.cache is not None:
            arguments = {**arguments, "cache": self.cache}
        if self.scale != 1:
            start = 0 if self.cache is None else self.cache.longest
            arguments = {name: _twice(value) for name, value in arguments.items()}
            dropped = torch.arange(2 * len(tokens), device=tokens.device) >= len(tokens)
            tokens = self.denoiser.without_prefix(_twice(tokens), dropped, start)
            classes = self.denoiser.without_class(_twice(classes), dropped)
        return self._embed(tokens, self._previous, classes, unfinished=unfinished, **arguments)

    def _with_shadows(self, tokens: Tensor, past: int) -> tuple[Tensor, dict[str, Any]]:
        """Tokens followed by a shadow of each, and the arguments of the network for both."""
        net, arguments, n = self.denoiser.net, dict(self._net_kwargs), tokens.shape[1]
        if net.attn_layers.window is not None or "prepend_embeds" in arguments:
            raise ConfigError("the sampler wino needs attention without a window and without prepend_embeds")
        arguments.setdefault("positions", past + torch.arange(n, device=tokens.device).expand_as(tokens))
        for name in _OF_TOKENS:
            if arguments.get(name) is not None:
                arguments[name] = torch.cat((arguments[name], arguments[name]), dim=-1)

        def rule(query: Tensor, key: Tensor) -> Tensor:
            return (key < past + n) & ((query < past + n) | (key != query - n))

        both = torch.cat((tokens, torch.full_like(tokens, self.denoiser.mask_id)), dim=1)
        return both, {**arguments, "rule": rule}

    def _fill(self, tokens: Tensor) -> Tensor:
        """Tokens with copies of the first row, so that no matrix product has too few rows."""
        return torch.cat((tokens, tokens[:1].expand(self._spare, -1))) if self._spare else tokens

    def _doubled(self, rows: Tensor) -> Tensor:
        """The rows of what is kept of both halves under guidance."""
        return rows if self.scale == 1 else torch.cat((rows, rows + self._batch))


def _rows_of(value: Any, rows: Tensor) -> Any:
    """Rows of a tensor; anything else as it is."""
    return value[rows] if isinstance(value, Tensor) else value


def _twice(value: Any) -> Any:
    """A tensor `[batch, ...]` twice, `[2 * batch, ...]`; anything else as it is."""
    return torch.cat((value, value)) if isinstance(value, Tensor) else value
