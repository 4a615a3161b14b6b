"""`CausalBlockDiffusion`: block diffusion by a `Decoder`, which is causal where nothing is masked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nar_scale.masking import MaskedBatch, Noise
from nar_scale.model import TransformerWrapper
from nar_scale.objectives.block_diffusion import BlockDiffusionWrapper
from nar_scale.objectives.non_autoregressive import MASK


class CausalBlockDiffusion(BlockDiffusionWrapper):
    """Unmasks blocks of tokens that see themselves and the true tokens before, each of which sees only its own past.

    Keys and values of finished blocks are thus those of an autoregressive model.

    Args:
        net: a `TransformerWrapper` around a `Decoder`.
        mask_id: the token that stands for an unknown one.
        block_size: tokens in a block; divides `max_seq_len`.

    Raises:
        ConfigError: arguments that contradict each other.
    """

    with_decoder = True

    def __init__(self, net: TransformerWrapper, *, mask_id: int, block_size: int):
        super().__init__(net, mask_id=mask_id, block_size=block_size, no_replace_prob=0.0, random_token_prob=0.0)

    def mask(self, tokens: Tensor, maskable: Tensor, noise: Noise) -> MaskedBatch:
        """Mask tokens, int64 `[batch, n]`, where `maskable` allows it; a row of the result is a block.

        Args:
            tokens: of whole sequences.
            maskable: bool `[batch, n]`, false for padding.
            noise: of the sequences; the masks are those of `BlockDiffusionWrapper`.
        """
        return self._mask_tokens(tokens, maskable, noise.derive(MASK))

    def embed_both(self, masked: Tensor, true: Tensor, net_kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Embeddings of the masked copy of sequences and of the causal true one, from one pass; each `[batch, n, dim]`.

        Args:
            masked: int64 `[batch, n]`.
            true: int64 `[batch, n]`.
            net_kwargs: further arguments of the network, of one copy; with sequence parallelism the embeddings are of
                this rank's part.
        """
        return self._embed_both(masked, true, None, net_kwargs)

    def embed(self, *args: Any, causal: bool = False, **kwargs: Any) -> Tensor:
        """Embeddings of tokens as in `Denoiser`; unless `causal`, each sees all that its rule allows."""
        return super().embed(*args, causal=causal, **kwargs)
