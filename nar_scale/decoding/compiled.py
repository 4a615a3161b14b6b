"""Left-to-right decoding in compiled steps of static shapes; on GPUs each is one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nar_scale.decoding.predictor import Predictor
from nar_scale.model import KeyValueCache, TransformerWrapper

_CAPACITY_STEP = 64  # capacities are rounded up to this, so that prompts of many lengths share a graph


class CompiledPredictor:
    """The next-token logits as `Predictor` gives them, each token but those of the prompt in a compiled step.

    A step attends to as many keys as there is room for, so its logits may differ in rounding. The buffers of a network
    are kept for its next sequences.

    Args:
        plain: gives network, padding, prefix and conditions, and answers past `max_seq_len` tokens.
        tokens: how long sequences will be at most, without the prefix.
    """

    def __init__(self, plain: Predictor, tokens: int):
        self.plain = plain
        net, padding = plain.net, plain.padding
        capacity = min(-(-(plain.prefixed + tokens) // _CAPACITY_STEP) * _CAPACITY_STEP, net.max_seq_len)
        self.cache = _cache_of(net, len(padding), capacity)
        mask = torch.arange(capacity, device=padding.device) >= padding[:, None] if plain.padded else None
        self._fixed = padding, mask, self.cache
        self._step = _compiled_step(padding.is_cuda)
        self._started = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """The logits of the token that follows `tokens`, int64 `[batch, n]`; float32 `[batch, num_tokens]`."""
        if self.plain.prefixed + tokens.shape[1] > self.cache.capacity:
            return self.plain(tokens)
        if not self._started:
            self._started = True
            first, more = self.plain.begin(tokens, self.plain.padding)
            return _advance(self.plain.net, first, *self._fixed, more)
        torch.compiler.cudagraph_mark_step_begin()
        last = tokens[:, -1:].clone(memory_format=torch.contiguous_format)  # strides are a part of a graph too
        return self._step(self.plain.net, last, *self._fixed, self.plain.conditions)


def _advance(
    net: TransformerWrapper,
    tokens: Tensor,
    padding: Tensor,
    mask: Tensor | None,
    cache: KeyValueCache,
    conditions: dict[str, Tensor],
) -> Tensor:
    """Take in further tokens, int64 `[batch, n]`, and give the logits of the next, float32 `[batch, num_tokens]`."""
    count = tokens.shape[1] + (conditions["prepend_embeds"].shape[1] if "prepend_embeds" in conditions else 0)
    columns = cache.length + torch.arange(count, device=tokens.device)
    positions = (columns - padding[:, None]).clamp(min=0)
    hidden = net(tokens, mask=mask, positions=positions, cache=cache, return_embeddings=True, **conditions)
    return net.to_logits(hidden[:, -1]).float()


@lru_cache
def _compiled_step(on_gpu: bool) -> Callable[..., Tensor]:
    return torch.compile(_advance, dynamic=False, mode="reduce-overhead" if on_gpu else None)


_caches: WeakKeyDictionary[TransformerWrapper, tuple[Any, KeyValueCache]] = WeakKeyDictionary()


def _cache_of(net: TransformerWrapper, batch: int, capacity: int) -> KeyValueCache:
    """An empty cache; that of the sequences before, if it fits, so that CUDA graphs find their buffers again."""
    weight = net.token_emb.weight
    fits = batch, capacity, weight.device, weight.dtype
    if _caches.get(net, (None,))[0] != fits:
        _caches[net] = fits, KeyValueCache(capacity, weight.device)
    cache = _caches[net][1]
    cache.clear()
    return cache
