"""Keys and values of earlier tokens, so that each token passes a network once."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class KeyValueCache:
    """Keys and values of the tokens seen so far, in buffers allocated once.

    Args:
        capacity: tokens that fit.
    """

    capacity: int
    length: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append `[batch, kv_heads, n, dim_head]` of one layer; returns all of that layer's so far."""
        if layer not in self.layers:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.layers[layer] = (keys.new_empty(shape), values.new_empty(shape))
        end = self.length + keys.shape[2]
        for buffer, new in zip(self.layers[layer], (keys, values)):
            buffer[:, :, self.length : end] = new
        all_keys, all_values = self.layers[layer]
        return all_keys[:, :, :end], all_values[:, :, :end]

    def keys_after(self, tokens: int) -> int:
        """How many keys are attended to by so many further tokens, their own included."""
        return self.length + tokens

    def advance(self, tokens: int) -> None:
        """Count further tokens, once all layers have them."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder batch rows; int64 indices `[new_batch]` (beam search)."""
        self.layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self.layers.items()}


class StaticKeyValueCache(nn.Module):
    """The same for compiled steps: all shapes stay what they are, and how many tokens there are is on the device.

    Every token attends to whole buffers, of which a mask hides what is not yet there. A module, whose buffers
    `torch.compile` takes for tensors that stay in their place, so that CUDA graphs may write to them.

    Args:
        capacity: tokens that fit.
        device: where the network is.
    """

    length: Tensor

    def __init__(self, capacity: int, device: torch.device):
        super().__init__()
        self.capacity = capacity
        self.register_buffer("length", torch.zeros((), dtype=torch.int64, device=device))

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[batch, kv_heads, n, dim_head]` of one layer; returns its whole buffers, with `capacity` tokens."""
        names = f"keys_{layer}", f"values_{layer}"
        positions = self.length + torch.arange(keys.shape[2], device=keys.device)
        for name, new in zip(names, (keys, values)):
            if name not in self._buffers:  # zeros, since what is hidden is still multiplied
                self.register_buffer(name, new.new_zeros(*new.shape[:2], self.capacity, new.shape[3]))
            self.get_buffer(name).index_copy_(2, positions, new)
        all_keys, all_values = (self.get_buffer(name) for name in names)
        return all_keys, all_values

    def keys_after(self, tokens: int) -> int:
        """How many keys are attended to by further tokens: `capacity`, hidden ones included."""
        return self.capacity

    def advance(self, tokens: int) -> None:
        """Count further tokens, once all layers have them."""
        self.length.add_(tokens)

    def clear(self) -> None:
        """Forget all tokens, and keep the buffers."""
        self.length.zero_()
