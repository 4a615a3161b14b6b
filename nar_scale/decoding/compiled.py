"""What compiled steps of left-to-right decoding need: static shapes, and buffers that stay; on GPUs a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nar_scale.model import KeyValueCache, TransformerWrapper

_CAPACITY_STEP = 64  # capacities are rounded up to this, so that prompts of many lengths share a graph
_caches: WeakKeyDictionary[TransformerWrapper, tuple[Any, KeyValueCache]] = WeakKeyDictionary()


@lru_cache
def compiled_step(step: Callable[..., Tensor], on_gpu: bool) -> Callable[..., Tensor]:
    """A step of decoding with a static graph for each shape; on a GPU each is one CUDA graph."""
    return torch.compile(step, dynamic=False, mode="reduce-overhead" if on_gpu else None)


def cache_of(net: TransformerWrapper, batch: int, tokens: int) -> KeyValueCache:
    """An empty cache of static shape; that of the sequences before, if it fits, so that graphs find their buffers.

    Args:
        net: the network.
        batch: number of sequences.
        tokens: that must fit, at most the network's `max_seq_len`.
    """
    capacity = min(-(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP, net.max_seq_len)
    weight = net.token_emb.weight
    fits = batch, capacity, weight.device, weight.dtype
    if _caches.get(net, (None,))[0] != fits:
        _caches[net] = fits, KeyValueCache(capacity, static=True)
    cache = _caches[net][1]
    cache.clear()
    return cache
