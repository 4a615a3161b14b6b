"""Next-token logits of a causal net, with a key/value cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nar_scale.model import KeyValueCache, TransformerWrapper


@dataclass
class Predictor:
    """Next-token logits of a causal net for sequences that grow at the end.

    Within `max_seq_len` each token passes the net once; past it the window slides, and with it all positions
    change, so that the whole window is computed anew for each token.

    Attributes:
        padding: int64 `[batch]`, padding tokens before each sequence.
        use_cache: keep keys and values.
        conditions: what the net is given beside the tokens, tensors by name with a batch dimension.
        cache: the keys and values so far.
        padded: whether there is any padding.
    """

    net: TransformerWrapper
    padding: Tensor
    use_cache: bool = True
    conditions: dict[str, Tensor] = field(default_factory=dict)
    cache: KeyValueCache | None = field(default=None, init=False)
    padded: bool = field(init=False)

    def __post_init__(self) -> None:
        self.padded = bool(self.padding.any())  # asked once, since on a GPU the host waits for the answer

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of the token after `[batch, n]`, float32 `[batch, num_tokens]`."""
        length, capacity = tokens.shape[1], self.net.max_seq_len
        if not self.use_cache or length > capacity:
            self.cache = None
            window = tokens[:, -capacity:]
            padding = (self.padding - (length - window.shape[1])).clamp(min=0)
            return self._run(window, padding, self.padded and bool(padding.any()), None)
        if self.cache is None:
            self.cache = KeyValueCache(capacity)
        return self._run(tokens, self.padding, self.padded, self.cache)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the sequences; int64 `[new_batch]`."""
        self.padding = self.padding[rows]
        self.padded = self.padded and bool(self.padding.any())
        self.conditions = {name: tensor[rows] for name, tensor in self.conditions.items()}
        if self.cache is not None:
            self.cache.select(rows)

    def _run(self, tokens: Tensor, padding: Tensor, padded: bool, cache: KeyValueCache | None) -> Tensor:
        start = cache.length if cache is not None else 0
        indices = torch.arange(tokens.shape[1], device=tokens.device)
        mask = indices >= padding[:, None] if padded else None
        positions = (indices - padding[:, None]).clamp(min=0)[:, start:]
        hidden = self.net(
            tokens[:, start:], mask=mask, positions=positions, cache=cache, return_embeddings=True, **self.conditions
        )
        return self.net.to_logits(hidden[:, -1]).float()
