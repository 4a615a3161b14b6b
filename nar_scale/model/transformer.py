"""`TransformerWrapper`: token ids in, embeddings or logits out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nar_scale.errors import ConfigError
from nar_scale.model.attention_mask import Rule
from nar_scale.model.head import CHUNK_SIZE, Head
from nar_scale.model.kv_cache import KeyValueCache
from nar_scale.model.layers import EMBEDDING_STD, Embedding, Linear
from nar_scale.model.sequence_parallel import WHOLE, SequenceParallelContext
from nar_scale.model.stack import AttentionLayers


class TransformerOutput(NamedTuple):
    """All that a forward pass yields.

    Attributes:
        embeddings: `[batch, n, dim]`, after the final norm.
        attention_z_loss: per token `[batch, n]`, if it was asked for.
    """

    embeddings: Tensor
    attention_z_loss: Tensor | None


class TransformerWrapper(nn.Module):
    """Embeds token ids, runs `attn_layers` and maps to logits.

    Args:
        num_tokens: size of the vocabulary, special ids included.
        max_seq_len: longest sequence; fixed by learned positions, a convention with rotary ones.
        attn_layers: an `Encoder` or a `Decoder`.
        embedding_std: standard deviation of the embeddings of tokens and learned positions at first.
        tie_embedding: use the embedding table as the output projection.
        tie_embedding_scale: of the logits then.
        add_continuous_pred_head: a head that predicts the next token's embedding (`AutoregressiveWrapper`).
        attn_z_loss_weight: weight of the attention z-loss, where a wrapper adds it.
        logits_dim: width of the output; `num_tokens` if not given (a token critic uses 1).
        logits_chunk_size: logits (tokens times vocabulary) that a loss computes at a time.

    Raises:
        ConfigError: a tied head of another width.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int,
        attn_layers: AttentionLayers,
        embedding_std: float = EMBEDDING_STD,
        tie_embedding: bool = False,
        tie_embedding_scale: float = 1.0,
        add_continuous_pred_head: bool = False,
        attn_z_loss_weight: float = 1e-4,
        logits_dim: int | None = None,
        logits_chunk_size: int = CHUNK_SIZE,
    ):
        super().__init__()
        dim = attn_layers.dim
        if tie_embedding and logits_dim not in (None, num_tokens):
            raise ConfigError(f"tie_embedding needs logits_dim {logits_dim} to be num_tokens {num_tokens}")
        self.num_tokens, self.max_seq_len, self.emb_dim = num_tokens, max_seq_len, dim
        self.attn_z_loss_weight = attn_z_loss_weight
        self.add_continuous_pred_head = add_continuous_pred_head
        self.embedding_std = embedding_std
        self.token_emb = Embedding(num_tokens, dim, embedding_std)
        self.pos_emb = Embedding(max_seq_len, dim, embedding_std) if attn_layers.rotary is None else None
        self.attn_layers = attn_layers
        self.tie_embedding = tie_embedding
        scale = tie_embedding_scale if tie_embedding else 1.0
        self.to_logits = Head(dim, logits_dim or num_tokens, scale, logits_chunk_size)
        self.tie_weights()
        if add_continuous_pred_head:
            self.to_next_embed_pred = nn.Sequential(Linear(dim, dim), nn.SiLU(), Linear(dim, dim))

    def tie_weights(self) -> None:
        """Make output projection and embedding table one parameter, if so configured.

        Needed again after `to_empty`, which gives each module a tensor of its own.
        """
        if self.tie_embedding:
            self.to_logits.weight = self.token_emb.weight

    @property
    def causal(self) -> bool:
        """Whether a token sees only the past."""
        return self.attn_layers.causal

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        sum_embeds: Tensor | None = None,
        prepend_embeds: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        documents: Tensor | None = None,
        rule: Rule | None = None,
        causal: bool | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        return_embeddings: bool = False,
        return_logits_and_embeddings: bool = False,
        return_output: bool = False,
        with_z_loss: bool = False,
        sequence_parallel: SequenceParallelContext = WHOLE,
        unfinished: bool = False,
    ) -> Any:
        """Run the net.

        Args:
            x: token ids, int64 `[batch, n]`.
            mask: bool `[batch, keys]`, false for tokens nobody attends to (padding); cached and prepended
                tokens come first.
            sum_embeds: added to the token embeddings, broadcastable to `[batch, n, dim]`.
            prepend_embeds: a prefix of embeddings, `[batch, prefix, dim]`; the result covers it too.
            positions: int64 `[batch, n]`; counted on from the cache if not given.
            cache: keys and values of earlier tokens, extended in place.
            documents: int64 `[batch, keys]`; a token attends only to its own document.
            rule: which queries may attend to which keys, by their indices, in addition (`Visibility.rule`).
            causal: whether a token sees only the past; None for what `attn_layers` are made for.
            context: `[batch, m, dim_context]` for cross-attention.
            context_mask: bool `[batch, m]`, true where the context may be attended.
            return_embeddings: return `[batch, n, dim]` instead of logits.
            return_logits_and_embeddings: return both.
            return_output: return a `TransformerOutput`.
            with_z_loss: compute the attention z-loss for it.
            sequence_parallel: this rank's part of the sequences: what is returned covers it alone, and `sum_embeds`
                is of it. Everything else is given of whole sequences, by all ranks that share them.
            unfinished: the embeddings that are returned are those that `finish` takes.

        Returns:
            logits `[batch, n, num_tokens]`, or what was asked for.

        Raises:
            ValueError: more tokens than learned positions, a context where none is expected, or shared sequences with
                `prepend_embeds` or `cache` or that do not divide.
        """
        tokens = x.shape[1] + (prepend_embeds.shape[1] if prepend_embeds is not None else 0)
        if positions is None:
            positions = self._positions(x, tokens, cache)
        if sequence_parallel.size > 1 and (cache is not None or prepend_embeds is not None):
            raise ValueError("sequences that ranks share have no cache and no prepended embeddings")
        positions = sequence_parallel.shard(positions, dim=-1)
        embeds = self._embed(sequence_parallel.shard(x), positions, sum_embeds, prepend_embeds)
        embeddings, z_loss = self.attn_layers(
            embeds,
            positions,
            mask,
            cache,
            with_z_loss,
            documents=documents,
            rule=rule,
            causal=causal,
            context=context,
            context_mask=context_mask,
            sequence_parallel=sequence_parallel,
            unfinished=unfinished,
        )
        if return_output:
            return TransformerOutput(embeddings, z_loss)
        if return_embeddings:
            return embeddings
        logits = self.to_logits(embeddings)
        return (logits, embeddings) if return_logits_and_embeddings else logits

    def finish(self, unfinished: Tensor) -> Tensor:
        """The last feed-forward layer and the final norm, for those tokens that they are wanted of.

        Args:
            unfinished: embeddings from a pass that was asked for these, `[..., dim]`.

        Returns:
            embeddings of the same shape, which `to_logits` takes.
        """
        return self.attn_layers.finish(unfinished)

    def _embed(self, x: Tensor, positions: Tensor, sum_embeds: Tensor | None, prepend_embeds: Tensor | None) -> Tensor:
        embeds = self.token_emb(x)
        if sum_embeds is not None:
            embeds = embeds + sum_embeds
        if prepend_embeds is not None:
            embeds = torch.cat((prepend_embeds.to(embeds.dtype), embeds), dim=1)
        if self.pos_emb is not None:
            embeds = embeds + self.pos_emb(positions)
        return embeds

    def _positions(self, x: Tensor, tokens: int, cache: KeyValueCache | None) -> Tensor:
        """Positions counted on from the cache, int64 `[tokens]` or `[batch, tokens]`."""
        if cache is None:
            self._check_length(tokens)
            return torch.arange(tokens, device=x.device)
        cache.start(len(x), x.device)
        self._check_length(cache.keys_after(tokens))
        return cache.positions(tokens)

    def _check_length(self, length: int) -> None:
        if self.pos_emb is not None and length > self.max_seq_len:
            raise ValueError(f"{length} tokens exceed max_seq_len {self.max_seq_len} of the learned positions")
