"""Keys and values of earlier tokens, so that each token passes a network once."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class KeyValueCache(nn.Module):
    """Keys and values of the tokens that a network has seen, each row with a length of its own.

    A pass of the network over `[batch, n]` writes the n tokens of each row where that row ends, at the positions from
    there on, and counts them all. Rows that have fewer tokens are padded on the right, and so are drafts that may be
    refused: `truncate` afterwards drops what is not to stay, and later tokens overwrite it. Nothing is ever moved.

    Buffers are allocated once, in the first pass. They are a module's, which `torch.compile` takes for tensors that
    stay in their place, so that CUDA graphs may write to them.

    Args:
        capacity: tokens of a row that fit, with those that are dropped again.
        static: for compiled steps. All shapes stay what they are: each token attends to the whole buffers, of which a
            mask hides what is not there, and no length is known on the host.

    Attributes:
        lengths: int64 `[batch]` on the device, the tokens of each row; from the first pass on.
        longest: the largest of the lengths, known on the host; of a static cache nothing but 0.
        aligned: whether all rows have that length, which needs no mask.
    """

    lengths: Tensor

    def __init__(self, capacity: int, static: bool = False):
        super().__init__()
        self.capacity, self.static = capacity, static
        self.longest, self.aligned = 0, not static
        self.register_buffer("lengths", None, persistent=False)

    @property
    def started(self) -> bool:
        """Whether a network has used it, so that it has `lengths`."""
        return self._buffers["lengths"] is not None

    def start(self, batch: int, device: torch.device) -> None:
        """Give the cache its number of rows, before the first pass; the network calls this."""
        if not self.started:
            self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    def positions(self, tokens: int) -> Tensor:
        """Positions of so many further tokens of each row, int64 `[tokens]` if `aligned`, else `[batch, tokens]`."""
        further = torch.arange(tokens, device=self.lengths.device)
        return self.longest + further if self.aligned else self.lengths[:, None] + further

    def keys_after(self, tokens: int) -> int:
        """How many keys are attended to by so many further tokens, their own and hidden ones included."""
        return self.capacity if self.static else self.longest + tokens

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write further tokens of one layer; `advance` counts them once all layers have theirs.

        Args:
            layer: number of the layer.
            keys: `[batch, kv_heads, n, dim_head]`.
            values: of the same shape.

        Returns:
            keys and values of all tokens of that layer so far, `[batch, kv_heads, keys_after(n), dim_head]`; what
            stands past the end of a row is without meaning.
        """
        end = self.keys_after(keys.shape[2])
        return self._write(f"keys_{layer}", keys, end), self._write(f"values_{layer}", values, end)

    def advance(self, tokens: int) -> None:
        """Count so many further tokens of each row, once all layers have them."""
        self.lengths.add_(tokens)
        if not self.static:
            self.longest += tokens

    def truncate(self, lengths: int | Tensor) -> None:
        """Drop tokens at the ends of rows; reading tensors from a GPU makes the host wait.

        Args:
            lengths: how many tokens stay, at most those that there are: a number for all rows, or int64 `[batch]`.
        """
        if not self.started:
            return
        if isinstance(lengths, int):
            self.lengths.fill_(lengths)
        else:
            self.lengths.copy_(lengths)
        if self.static:
            return
        if isinstance(lengths, int):
            self.longest, self.aligned = lengths, True
        else:
            shortest, self.longest = torch.stack(lengths.aminmax()).tolist()
            self.aligned = shortest == self.longest

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows; int64 `[new_batch]`, not empty (beam search, or sequences that have ended)."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.index_select(0, rows))
        if not (self.static or self.aligned):
            self.truncate(self.lengths)  # those that are left may be aligned

    def clear(self) -> None:
        """Forget all tokens, and keep the buffers."""
        self.truncate(0)

    def _write(self, name: str, new: Tensor, end: int) -> Tensor:
        if name not in self._buffers:
            # zeros, since a mask hides numbers, but not NaN
            buffer = new.new_zeros(*new.shape[:2], self.capacity, new.shape[3])
            self.register_buffer(name, buffer, persistent=False)
        buffer = cast(Tensor, self._buffers[name])
        if self.aligned:
            buffer.narrow(2, self.longest, end - self.longest).copy_(new)
        else:
            index = (self.lengths[:, None] + torch.arange(new.shape[2], device=new.device))[:, None, :, None]
            buffer.scatter_(2, index.expand_as(new), new)
        return buffer if end == self.capacity else buffer.narrow(2, 0, end)
