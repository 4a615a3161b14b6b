"""`BlockDiffusionWrapper`: autoregressive over blocks of tokens, masked diffusion inside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nar_scale.decoding import Demasked, demask
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import WHOLE, KeyValueCache, SequenceShare, TransformerWrapper
from nar_scale.objectives.non_autoregressive import NonAutoregressiveWrapper


class BlockDiffusionWrapper(NonAutoregressiveWrapper):
    """Trains an `Encoder` to demask blocks of tokens from left to right (BD3-LM, arXiv:2503.09573).

    A block of masked tokens sees itself and the true tokens of the blocks before it. Every block draws its own number
    of masked tokens, stratified over all blocks of the global batch. With blocks of one token the loss is the exact
    negative log-likelihood of an autoregressive model, with one block it is that of `NonAutoregressiveWrapper`.

    Both copies of a sequence, masked and true, pass the net together, so training costs twice the tokens; decoding
    keeps keys and values of finished blocks. Blocks are counted from the start of a sample, not of each document in it:
    where documents are no multiples of `block_size`, a block holds the end of one and the beginning of the next, which
    do not see each other.

    Args:
        net: a `TransformerWrapper` around an `Encoder`.
        mask_id: the token that hides.
        block_size: tokens in a block; divides `max_seq_len`.
        options: those of `NonAutoregressiveWrapper`, but for self-conditioning and critics.

    Raises:
        ConfigError: arguments that contradict each other.
    """

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

    def _embed(
        self, visible: Tensor, tokens: Tensor, noise: Noise, classes: Tensor | None, net_kwargs: dict[str, Any]
    ) -> Tensor:
        if self.parts == 1:
            return super()._embed(visible, tokens, noise, classes, net_kwargs)
        n = tokens.shape[1]
        share: SequenceShare = net_kwargs.get("share", WHOLE)
        stripe = n // share.size  # so that each rank has as much of both copies

        def side_by_side(masked: Tensor, true: Tensor) -> Tensor:
            striped = [each.unflatten(-1, (share.size, stripe)) for each in (masked, true)]
            return torch.cat(striped, dim=-1).flatten(-2)

        by_token = {name: net_kwargs.get(name) for name in ("mask", "documents", "positions")}
        if by_token["positions"] is None:
            by_token["positions"] = torch.arange(n, device=tokens.device)
        twice = {name: side_by_side(each, each) for name, each in by_token.items() if each is not None}
        both = side_by_side(visible, tokens)
        rule = masked_then_true(stripe, self.block_size)
        return self.embed(both, None, classes, **{**net_kwargs, **twice}, rule=rule)[:, :stripe]

    def _demask(self, tokens: Tensor, predict: Callable[..., tuple[Tensor, Tensor]], **options: Any) -> Demasked:
        """Demask block after block; `steps` network calls are shared out to the blocks, one at least to each."""
        noise: Noise = options.pop("noise")
        steps = max(1, options.pop("steps") // self.parts)
        if steps == 1:
            options["sampler"] = "random"  # nothing to cool down over: the temperature stays
        cache = KeyValueCache(tokens.shape[1])
        calls = torch.zeros_like(tokens[:, 0])
        finished: list[Tensor] = []
        for number, block in enumerate(tokens.split(self.block_size, dim=1)):
            past = cache.length

            def predict_block(tokens: Tensor, embeddings: Tensor | None, past: int = past) -> tuple[Tensor, Tensor]:
                cache.length = past  # forget the block as it was in the call before
                return predict(tokens, embeddings, cache=cache)

            result = demask(predict_block, block, steps=steps, noise=noise.derive(number), **options)
            finished.append(result.tokens)
            calls += result.network_calls
            if past + block.shape[1] < tokens.shape[1]:
                predict_block(result.tokens, None)  # keep the keys and values of what it has become
                calls += 1
        return Demasked(torch.cat(finished, dim=1), calls)


def masked_then_true(stripe: int, block_size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Who sees whom in a masked sequence and the true one (BD3-LM, section 4.1), which take turns.

    The first `stripe` tokens of the masked sequence are followed by the first of the true one, and so on; a stripe can
    be the whole sequence. Masked tokens see those of their own block and the true ones of the blocks before; true
    tokens see the true ones of their own block and of those before.
    """

    def block(place: Tensor) -> Tensor:
        return (place // (2 * stripe) * stripe + place % stripe) // block_size

    def rule(query: Tensor, key: Tensor) -> Tensor:
        query_block, key_block = block(query), block(key)
        query_true, key_true = query // stripe % 2 == 1, key // stripe % 2 == 1
        within_masked = ~query_true & ~key_true & (query_block == key_block)
        to_the_past = ~query_true & key_true & (key_block < query_block)
        within_true = query_true & key_true & (key_block <= query_block)
        return within_masked | to_the_past | within_true

    return rule
