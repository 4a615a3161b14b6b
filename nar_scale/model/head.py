"""The output projection, which need not hold the logits of all tokens at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nar_scale.model.layers import Linear

CHUNK_SIZE = 2**26
"""Logits that exist at a time, unless told otherwise: 256 MiB in float32."""
_FEW, _LARGE = 8, 4096  # tokens, and tokens of a vocabulary


class Head(Linear):
    """Maps embeddings to logits, or to what is computed of them chunk by chunk.

    Everything happens in one `forward`, so that ZeRO 3 gathers the weight once, however many chunks a rank has.
    (torch's `linear_cross_entropy` would return bfloat16 losses for bfloat16 weights.)

    Args:
        input_scale: of the embeddings, for a weight that is shared with an embedding table.
        chunk_size: tokens times vocabulary that are projected at a time; one token at least.

    Attributes:
        excluded: a token that is never an answer: its logits are -inf; None for no such token.
    """

    excluded: int | None = None

    def __init__(self, dim: int, num_tokens: int, input_scale: float = 1.0, chunk_size: int = CHUNK_SIZE):
        super().__init__(dim, num_tokens)
        self.input_scale, self.chunk_size = input_scale, chunk_size

    def forward(self, embeddings: Tensor, reduce: Callable[..., Tensor] | None = None, *per_token: Tensor) -> Tensor:
        """Logits `[..., num_tokens]`, or what `reduce` makes of them.

        Args:
            embeddings: `[..., dim]`; with `reduce`, `[tokens, dim]`.
            reduce: maps logits `[chunk, num_tokens]` and the chunk's part of `per_token` to `[chunk, ...]`. Only its
                results are kept; the logits are computed again in the backward pass where there are several chunks.
            per_token: tensors `[tokens, ...]`.
        """
        if reduce is None:
            return self._project(embeddings)

        def run(chunk: Tensor, *rest: Tensor) -> Tensor:
            return reduce(self._project(chunk), *rest)

        size = max(1, self.chunk_size // self.out_features)
        if len(embeddings) <= size:
            return run(embeddings, *per_token)
        parts = zip(*(tensor.split(size) for tensor in (embeddings, *per_token)))
        if not torch.is_grad_enabled():
            return torch.cat([run(*part) for part in parts])
        return torch.cat([checkpoint(run, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])

    def _project(self, embeddings: Tensor) -> Tensor:
        logits = self._product(embeddings)
        if self.excluded is not None:
            logits[..., self.excluded] = -torch.inf
        return logits

    def _product(self, embeddings: Tensor) -> Tensor:
        embeddings = embeddings if self.input_scale == 1 else embeddings * self.input_scale
        if self._wide_for(embeddings):
            # the other way round the weight is not packed first, which takes longer than the product itself
            return (self.weight @ embeddings.flatten(0, -2).T).T.contiguous().view(*embeddings.shape[:-1], -1)
        return super().forward(embeddings)

    def _wide_for(self, embeddings: Tensor) -> bool:
        """Whether this is a step of decoding on a CPU: few tokens and a large vocabulary (benchmarks/RESULTS.md)."""
        if torch.is_grad_enabled() or embeddings.device.type != "cpu" or self.out_features < _LARGE:
            return False
        return 1 < embeddings[..., 0].numel() <= _FEW
