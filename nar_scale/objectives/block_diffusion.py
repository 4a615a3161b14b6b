"""`BlockDiffusionWrapper`: autoregressive over blocks of tokens, masked diffusion inside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nar_scale.config import ConfidenceDecoding, RandomDecoding, SamplerConfig
from nar_scale.decoding import Filters, Sampler, StepCallback, Unmasked
from nar_scale.errors import ConfigError
from nar_scale.masking import MaskedBatch, Noise
from nar_scale.model import WHOLE, KeyValueCache, SequenceParallelContext, TransformerWrapper
from nar_scale.objectives.denoising import GuidedNetwork, first_end, unmask_blocks
from nar_scale.objectives.non_autoregressive import NonAutoregressiveWrapper
from nar_scale.objectives.objective import Samples


class BlockDiffusionWrapper(NonAutoregressiveWrapper):
    """Trains an `Encoder` to unmask blocks of tokens from left to right (BD3-LM, arXiv:2503.09573).

    A block of masked tokens sees itself and the true tokens of the blocks before it. Each block has a number of masked
    tokens of its own, stratified over all blocks of the global batch. With blocks of one token the loss is the exact
    negative log-likelihood of an autoregressive model, with one block it is that of `NonAutoregressiveWrapper`.

    Both copies of a sequence, masked and true, pass the network together, so that training costs twice the tokens;
    decoding keeps keys and values of finished blocks. Blocks are counted from the start of a sample, not of each
    document in it: where the lengths of documents are no multiples of `block_size`, a block holds the end of one
    document and the beginning of the next, which do not see each other.

    Args:
        net: a `TransformerWrapper` around an `Encoder`.
        mask_id: the token that stands for an unknown one.
        block_size: tokens in a block; divides `max_seq_len`.
        options: those of `NonAutoregressiveWrapper`, except those of self-conditioning and critics.

    Attributes:
        parts: number of blocks in the longest sequence.

    Raises:
        ConfigError: arguments that contradict each other.
    """

    samples_padded = False  # padding would share a block with tokens

    def __init__(self, net: TransformerWrapper, *, mask_id: int, block_size: int, **options: Any):
        if block_size < 1 or net.max_seq_len % block_size:
            raise ConfigError(f"max_seq_len {net.max_seq_len} is not a multiple of block_size {block_size}")
        if options.get("self_cond") or options.get("self_token_critic") or options.get("token_critic") is not None:
            raise ConfigError("block diffusion has no self-conditioning and no token critic")
        if net.attn_layers.window:
            raise ConfigError("block diffusion has no sliding window: a masked token's past stands in the other copy")
        super().__init__(net, mask_id=mask_id, **options)
        self.block_size = block_size
        self.parts = net.max_seq_len // block_size
        self.copies = 1 if self.parts == 1 else 2

    def sample(
        self,
        given: Tensor,
        decoding: SamplerConfig,
        noise: Noise,
        *,
        length: int | None = None,
        lengths: Tensor | None = None,
        classes: Tensor | None = None,
        end_token: int | None = None,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Fill in the masks of sequences of one length, up to the end token, if nothing is given behind it."""
        if lengths is not None:
            raise ValueError("block diffusion takes sequences of one length together; leave lengths out")
        tokens, calls = self._fill_in(given, decoding, noise, classes=classes, end_token=end_token, callback=callback)
        ended = [] if end_token is None else first_end(given == self.mask_id, tokens, end_token).tolist()
        rows = tokens.tolist()
        return Samples([row[:end] for row, end in zip(rows, ended)] if ended else rows, calls.tolist())

    def _check_generation(
        self, tokens: Tensor, classes: Tensor | None, documents: Tensor | None, compile: bool
    ) -> None:
        if compile and self.parts > 1:
            raise ValueError("block diffusion runs uncompiled: the keys that it keeps grow; leave compile out")
        if documents is not None and self.parts > 1:
            raise ValueError("block diffusion generates one document a sequence; leave documents out")
        super()._check_generation(tokens, classes, documents, compile)

    def _by_block(self, values: Tensor) -> Tensor:
        """Values `[batch, n]` with a row for each block, `[batch * parts, block_size]`."""
        return values.reshape(len(values) * self.parts, -1)

    def _masked_counts(self, maskable: Tensor, noise: Noise) -> Tensor:
        return super()._masked_counts(self._by_block(maskable), noise.split(self.parts))

    def _choose_masked(self, maskable: Tensor, noise: Noise) -> Tensor:
        return super()._choose_masked(self._by_block(maskable), noise.split(self.parts))

    def _mask_tokens(self, tokens: Tensor, maskable: Tensor, noise: Noise) -> MaskedBatch:
        return super()._mask_tokens(self._by_block(tokens), self._by_block(maskable), noise.split(self.parts))

    def _embed(
        self, visible: Tensor, tokens: Tensor, noise: Noise, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> Tensor:
        if self.parts == 1:
            return super()._embed(visible, tokens, noise, classes, net_kwargs)
        return self._embed_both(visible, tokens, classes, net_kwargs)[0]

    def _embed_both(
        self, visible: Tensor, tokens: Tensor, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings `[batch, n, dim]` of this rank's part of the masked sequences and of the true ones."""
        n = tokens.shape[1]
        sequence_parallel: SequenceParallelContext = net_kwargs.get("sequence_parallel", WHOLE)
        stripe = n // sequence_parallel.size  # so that each rank has as much of both copies

        def side_by_side(masked: Tensor, true: Tensor) -> Tensor:
            striped = [each.unflatten(-1, (sequence_parallel.size, stripe)) for each in (masked, true)]
            return torch.cat(striped, dim=-1).flatten(-2)

        by_token = {name: net_kwargs.get(name) for name in ("mask", "documents", "positions")}
        if by_token["positions"] is None:
            by_token["positions"] = torch.arange(n, device=tokens.device)
        twice = {name: side_by_side(each, each) for name, each in by_token.items() if each is not None}
        both = side_by_side(visible, tokens)
        rule = masked_then_true(stripe, self.block_size, causal=self.net.causal)
        masked, true = self.embed(both, None, classes, **{**net_kwargs, **twice}, rule=rule).split(stripe, dim=1)
        return masked, true

    def _unmask(
        self,
        tokens: Tensor,
        network: Callable[..., GuidedNetwork],
        sampler: Callable[[SamplerConfig], Sampler],
        decoding: SamplerConfig,
        noise: Noise,
        callback: StepCallback | None,
        end_token: int | None,
    ) -> Unmasked:
        """Unmask block after block, each with an equal part of the network calls, but at least one."""
        decoding = _for_a_block(decoding, self.parts)
        n = tokens.shape[1]
        smallest = tokens[:, (n - 1) // self.block_size * self.block_size :]
        cache = KeyValueCache(n + self.block_size)  # a block has shadows with some samplers
        return unmask_blocks(
            network(smallest, cache=cache),
            tokens,
            self.block_size,
            sampler(decoding),
            Filters(self.mask_id, decoding.top_k, decoding.top_p),
            noise,
            temperature=decoding.temperature,
            end_token=end_token,
            callback=callback,
        )


def _for_a_block(decoding: SamplerConfig, parts: int) -> SamplerConfig:
    steps = getattr(decoding, "steps", None)
    if steps is None:
        return decoding
    steps = max(1, steps // parts)
    if steps == 1 and isinstance(decoding, ConfidenceDecoding):  # which would have temperature 0 in its only step
        return RandomDecoding.model_validate({**decoding.model_dump(), "sampler": "random", "steps": 1})
    return decoding.model_copy(update={"steps": steps})


def masked_then_true(stripe: int, block_size: int, causal: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """Which tokens attend to which in a masked sequence interleaved with the true one (BD3-LM, section 4.1).

    Masked tokens attend to those of their own block and to the true tokens of earlier blocks. True tokens attend to the
    true ones of their own block and of earlier blocks or, if they are causal, to themselves and the true ones before.

    Args:
        stripe: the first `stripe` tokens of the masked sequence are followed by as many of the true one, and so on; the
            length of the sequence for the masked sequence followed by the true one.
        block_size: tokens in a block.
        causal: whether true tokens see only themselves and the past.

    Returns:
        a function of the positions of a query and a key, int64, to bool, both broadcast against each other.
    """

    def place(position: Tensor) -> Tensor:
        return position // (2 * stripe) * stripe + position % stripe

    def rule(query: Tensor, key: Tensor) -> Tensor:
        query_place, key_place = place(query), place(key)
        query_block, key_block = query_place // block_size, key_place // block_size
        query_true, key_true = query // stripe % 2 == 1, key // stripe % 2 == 1
        within_masked = ~query_true & ~key_true & (query_block == key_block)
        to_the_past = ~query_true & key_true & (key_block < query_block)
        past = key_place <= query_place if causal else key_block <= query_block
        within_true = query_true & key_true & past
        return within_masked | to_the_past | within_true

    return rule
