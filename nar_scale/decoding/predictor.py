"""Next-token logits of a causal net, with a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nar_scale.decoding.compiled import cache_of, compiled_step
from nar_scale.decoding.sequences import Sequences
from nar_scale.errors import NumericalError
from nar_scale.model import KeyValueCache, TransformerWrapper


class Predictor:
    """Next-token logits of a causal net for sequences that grow at their ends.

    Within `max_seq_len` each token passes the net once; when a sequence is longer its window slides, and with it all
    positions change, so that the whole windows are computed anew for each token.

    Prepended embeddings stay where the sequence begins, in front of the window too, and count towards `max_seq_len`.

    Args:
        net: the network.
        sequences: that are continued; who adds tokens to them or selects some is not the predictor.
        use_cache: keep keys and values.
        ahead: tokens that may be tried out after each sequence.
        compile: run all passes but the first, of one token each, through `torch.compile`, on GPUs as a CUDA graph. They
            attend to as many keys as there is room for, so their logits may differ in rounding.
        conditions: what the net is given beside the tokens, tensors by name with a batch dimension; `prepend_embeds`
            `[batch, prefix, dim]` stand before each sequence.

    Attributes:
        last_logits: what was computed last; None at first.

    Raises:
        ValueError: the prefix has another batch size or width than the net takes, or leaves no room for a token.
    """

    def __init__(
        self,
        net: TransformerWrapper,
        sequences: Sequences,
        *,
        use_cache: bool = True,
        ahead: int = 0,
        compile: bool = False,
        conditions: Mapping[str, Tensor] | None = None,
    ):
        self.net, self.sequences, self.compile = net, sequences, compile
        self.conditions = dict(conditions or {})
        self.prefix = self.conditions.pop("prepend_embeds", None)
        self.prefixed = 0 if self.prefix is None else self.prefix.shape[1]
        batch, room = sequences.tokens.shape
        shape = (batch, self.prefixed, net.emb_dim)
        if self.prefix is not None and (self.prefix.shape != shape or self.prefixed >= net.max_seq_len):
            raise ValueError(
                f"prepend_embeds of shape {list(self.prefix.shape)} do not fit {batch} prompts of width {net.emb_dim} "
                f"within {net.max_seq_len} tokens"
            )
        capacity = min(self.prefixed + room, net.max_seq_len) + ahead
        self.cache: KeyValueCache | None = None
        self._step: Callable[..., Tensor] = next_logits
        if compile:
            self.cache, self._step = (
                cache_of(net, batch, capacity),
                compiled_step(next_logits, sequences.tokens.is_cuda),
            )
        elif use_cache:
            self.cache = KeyValueCache(capacity)
        self._filled = False
        self.last_logits: Tensor | None = None

    def __call__(self) -> Tensor:
        """Logits of the token that follows each sequence, float32 `[batch, num_tokens]`.

        The first call takes in all of them, later ones the last token, which must be the only one that is new.
        """
        if self.prefixed + self.sequences.longest > self.net.max_seq_len:
            self.cache = None
        if self.cache is None or not self._filled:
            return self._seen(self._begin(self.cache))
        last = self.sequences.last
        if self.compile:
            torch.compiler.cudagraph_mark_step_begin()
            last = last.clone(memory_format=torch.contiguous_format)  # strides are a part of a graph too
        return self._seen(self._step(self.net, last, self.cache, self.conditions))

    def followed_by(self, tokens: Tensor) -> Tensor:
        """Logits of what follows each sequence, and it with further tokens that are only tried out.

        Those that stay are added to the sequences, and `keep` is called.

        Args:
            tokens: int64 `[batch, n]`, with n at most `ahead`.

        Returns:
            float32 `[batch, n + 1, num_tokens]`.
        """
        if not self._filled:
            first = self._seen(self._begin(self.cache))[:, None]
            return first if tokens.shape[1] == 0 else torch.cat((first, self.further(tokens)), dim=1)
        return self.further(torch.cat((self.sequences.last, tokens), dim=1))

    def further(self, tokens: Tensor) -> Tensor:
        """Logits of what follows each of some more tokens that are tried out; int64 `[batch, n]`, as `followed_by`."""
        assert self.cache is not None, "tokens are tried out with a cache alone"
        # what shorter sequences than the longest try out past their ends may have no position
        positions = self.cache.positions(tokens.shape[1]).clamp(max=self.net.max_seq_len - 1)
        positions = positions.expand(len(tokens), -1)
        hidden = self.net(tokens, positions=positions, cache=self.cache, return_embeddings=True, **self.conditions)
        return self._seen(self.net.to_logits(hidden).float())

    def _seen(self, logits: Tensor) -> Tensor:
        self.last_logits = logits
        return logits

    def keep(self) -> None:
        """After `followed_by` and what it led to: keep keys and values of all tokens but the last of each sequence."""
        if self.cache is not None:
            self.cache.truncate(self.prefixed + self.sequences.lengths - 1)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the rows, as those of the sequences; int64 `[new_batch]`."""
        self.conditions = {name: tensor[rows] for name, tensor in self.conditions.items()}
        self.prefix = None if self.prefix is None else self.prefix[rows]
        if self.cache is not None:
            self.cache.select(rows)

    def _begin(self, cache: KeyValueCache | None) -> Tensor:
        """Logits `[batch, num_tokens]` from whole sequences, or as much of their ends as the net takes."""
        self._filled = True
        tokens, counts = self.sequences.window(self.net.max_seq_len - self.prefixed)
        more = {} if self.prefix is None else {"prepend_embeds": self.prefix}
        hidden = self.net(tokens, cache=cache, return_embeddings=True, **more, **self.conditions)
        if self.sequences.aligned:
            return self.net.to_logits(hidden[:, -1]).float()
        if cache is not None:
            cache.truncate(self.prefixed + counts)
        last = (self.prefixed + counts - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        return self.net.to_logits(hidden.gather(1, last)[:, 0]).float()


def check_finite(*last_logits: Tensor | None) -> None:
    """Refuse what was drawn from a network whose last logits are not finite; the host waits.

    What is not finite in the weights is in the logits of every step, so that the last ones are enough.

    Args:
        last_logits: `[..., num_tokens]`, of which excluded tokens may be -inf; None where nothing was computed.

    Raises:
        NumericalError: the largest logit of a row is NaN or infinite.
    """
    if not all(bool(logits.amax(dim=-1).isfinite().all()) for logits in last_logits if logits is not None):
        raise NumericalError


def next_logits(net: TransformerWrapper, tokens: Tensor, cache: KeyValueCache, conditions: dict[str, Tensor]) -> Tensor:
    """Take in further tokens, int64 `[batch, n]`, and give the logits of the next, float32 `[batch, num_tokens]`."""
    hidden = net(tokens, cache=cache, return_embeddings=True, **conditions)
    return net.to_logits(hidden[:, -1]).float()
