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

    Prepended embeddings stay where the sequence begins, in front of the window too, and count towards `max_seq_len`.

    Attributes:
        padding: int64 `[batch]`, padding tokens before each sequence.
        use_cache: keep keys and values.
        conditions: what the net is given beside the tokens, tensors by name with a batch dimension.
        prefix: what is prepended to each sequence, `[batch, prefix, dim]`, or None.
        cache: the keys and values so far.
        padded: whether there is any padding.

    Raises:
        ValueError: the prefix has another batch size or width than the net takes, or leaves no room for a token.
    """

    net: TransformerWrapper
    padding: Tensor
    use_cache: bool = True
    conditions: dict[str, Tensor] = field(default_factory=dict)
    prefix: Tensor | None = None
    cache: KeyValueCache | None = field(default=None, init=False)
    padded: bool = field(init=False)

    def __post_init__(self) -> None:
        self.padded = bool(self.padding.any())  # asked once, since on a GPU the host waits for the answer
        shape = (len(self.padding), self.prefixed, self.net.emb_dim)
        if self.prefix is not None and (self.prefix.shape != shape or self.prefixed >= self.net.max_seq_len):
            raise ValueError(
                f"prepend_embeds of shape {list(self.prefix.shape)} do not fit {shape[0]} prompts of width {shape[2]} "
                f"within {self.net.max_seq_len} tokens"
            )

    @property
    def prefixed(self) -> int:
        """The number of prepended embeddings."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of the token after `[batch, n]`, float32 `[batch, num_tokens]`."""
        length, room = tokens.shape[1], self.net.max_seq_len - self.prefixed
        if not self.use_cache or length > room:
            self.cache = None
            window = tokens[:, -room:]
            padding = (self.padding - (length - window.shape[1])).clamp(min=0)
            return self._run(window, padding, self.padded and bool(padding.any()), None)
        if self.cache is None:
            self.cache = KeyValueCache(self.net.max_seq_len)
        return self._run(tokens, self.padding, self.padded, self.cache)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the sequences; int64 `[new_batch]`."""
        self.padding = self.padding[rows]
        self.padded = self.padded and bool(self.padding.any())
        self.conditions = {name: tensor[rows] for name, tensor in self.conditions.items()}
        self.prefix = None if self.prefix is None else self.prefix[rows]
        if self.cache is not None:
            self.cache.select(rows)

    def begin(self, tokens: Tensor, padding: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the net is given for whole sequences, int64 `[batch, n]`: tokens, and its further arguments.

        With a prefix there are no tokens left: all are embedded, so that padding stands before the prefix of its row.
        """
        if self.prefix is None:
            return tokens, self.conditions
        embeds = torch.cat((self.prefix.to(self.net.token_emb.weight.dtype), self.net.token_emb(tokens)), dim=1)
        indices = torch.arange(embeds.shape[1], device=tokens.device)
        of_prefix = indices - padding[:, None]
        source = torch.where(of_prefix < self.prefixed, of_prefix.clamp(min=0), indices)
        prepended = embeds.gather(1, source[..., None].expand_as(embeds))
        return tokens[:, :0], {**self.conditions, "prepend_embeds": prepended}

    def _run(self, tokens: Tensor, padding: Tensor, padded: bool, cache: KeyValueCache | None) -> Tensor:
        start = cache.length if cache is not None else 0
        indices = torch.arange(self.prefixed + tokens.shape[1], device=tokens.device)
        mask = indices >= padding[:, None] if padded else None
        positions = (indices - padding[:, None]).clamp(min=0)[:, start:]
        new, more = self.begin(tokens, padding) if start == 0 else (tokens[:, start - self.prefixed :], self.conditions)
        hidden = self.net(new, mask=mask, positions=positions, cache=cache, return_embeddings=True, **more)
        return self.net.to_logits(hidden[:, -1]).float()
