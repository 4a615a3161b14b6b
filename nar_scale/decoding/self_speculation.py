"""Self-speculation: one network drafts blocks of tokens by diffusion and verifies them left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nar_scale.decoding.filters import LogitFilter
from nar_scale.decoding.left_to_right import Prompts
from nar_scale.decoding.speculative import Verified, draw_from, verify
from nar_scale.masking import Noise
from nar_scale.model import KeyValueCache, TransformerWrapper

_DRAFT, _ACCEPT, _DRAW = range(200, 203)  # streams of a sequence's noise, with a number for each of its tokens


class Continued(NamedTuple):
    """The result of `speculate`.

    Attributes:
        tokens: int64 `[batch, seq_len]`, without the prompts; behind the end token the padding token.
        lengths: int64 `[batch]`, tokens of each sequence, with its end token.
        network_calls: int64 `[batch]`, the calls in which each sequence grew.
    """

    tokens: Tensor
    lengths: Tensor
    network_calls: Tensor


@dataclass(frozen=True)
class Distribution:
    """From logits to the probabilities that tokens are drawn with.

    Attributes:
        temperature: divides the logits; 0 gives all probability to the most probable token.
        logit_filter: is applied to the logits before.
    """

    temperature: float
    logit_filter: LogitFilter

    def of(self, logits: Tensor) -> Tensor:
        """Probabilities, float64 `[..., num_tokens]`, of logits of that shape."""
        if self.temperature == 0:
            best = logits.argmax(dim=-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, best, 1.0)
        return (self.logit_filter(logits).double() / self.temperature).softmax(dim=-1)


@torch.no_grad()
def speculate(
    net: TransformerWrapper,
    prompts: Prompts,
    seq_len: int,
    *,
    mask_id: int,
    block_size: int,
    noise: Noise,
    target: Distribution,
    proposal: Distribution,
    eos_token: int | None,
    pad_value: int,
) -> Continued:
    """Sample up to `seq_len` tokens after each prompt, several in a network call, with the distribution of one a call.

    A call is given the last known token, the `block_size - 1` drafted ones behind it, and for each of these tokens, in
    case it is the last to be accepted, a block of masks that sees all tokens up to it. The tokens are causal: they
    verify the draft, which yields one more token whatever becomes of it. The masks draft what follows that token,
    without having seen it. So drafting takes no calls of its own, but `block_size` squared masks in each call.

    Args:
        net: a causal network that was also trained as block diffusion.
        prompts: the beginnings of the sequences.
        seq_len: tokens to generate at most; with the prompt no more than the network's `max_seq_len`.
        mask_id: the token that stands for an unknown one.
        block_size: masks in a block.
        noise: the source of all randomness, a stream for each prompt.
        target: what tokens are to be drawn from.
        proposal: what drafts are drawn from.
        eos_token: ends a sequence, which leaves the batch.
        pad_value: follows the end token.
    """
    batch, known = prompts.tokens.shape
    device = prompts.tokens.device
    result = Continued(
        torch.full((batch, seq_len + block_size), pad_value, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
    )
    uniform = {stream: noise.derive(stream).uniform(seq_len + block_size) for stream in (_DRAFT, _ACCEPT, _DRAW)}
    active = torch.arange(batch if seq_len else 0, device=device)
    cache = _RaggedCache(net, prompts.padding, known + seq_len + block_size * (block_size + 2))
    tokens, anchors = prompts.tokens, torch.tensor([known - 1], device=device)
    drafted, proposed = tokens[:, :0], torch.zeros(batch, 0, net.num_tokens, dtype=torch.float64, device=device)
    while len(active):
        known, drafts = tokens.shape[1], drafted.shape[1]
        hidden = cache.run(torch.cat((tokens, drafted), dim=1), anchors, mask_id, block_size)
        of_tokens, of_masks = hidden.split((known + drafts, len(anchors) * block_size), dim=1)

        length = result.lengths[active]
        places = length[:, None] + torch.arange(block_size, device=device)
        accept = uniform[_ACCEPT][active].gather(1, places[:, :drafts])
        draw = uniform[_DRAW][active].gather(1, places[:, : drafts + 1])
        p = target.of(net.to_logits(of_tokens[:, known - 1 :]).float())
        verified = verify(p, proposed, drafted, (seq_len - 1 - length).clamp(max=drafts), accept, draw)
        new = _with_follower(drafted, verified)
        gained = _up_to_end(new, verified.accepted + 1, eos_token)
        result.tokens[active[:, None], places[:, : drafts + 1]] = new
        result.lengths[active] += gained
        result.network_calls[active] += 1
        cache.keep(known + verified.accepted)

        rows = torch.arange(len(active), device=device)
        masks = of_masks.unflatten(1, (len(anchors), block_size))[rows, verified.accepted]
        ended = (result.lengths[active] >= seq_len) | (gained <= verified.accepted)
        if eos_token is not None:
            ended = ended | (verified.token == eos_token)
        going_on = (~ended).nonzero()[:, 0]
        active = active[going_on]
        cache.select(going_on)
        proposed = proposal.of(net.to_logits(masks[going_on, 1:]).float())
        behind = result.lengths[active][:, None] + torch.arange(block_size - 1, device=device)
        drafted = draw_from(proposed, uniform[_DRAFT][active].gather(1, behind))
        tokens, anchors = verified.token[going_on, None], torch.arange(block_size, device=device)
    unused = torch.arange(seq_len, device=device) >= result.lengths[:, None]
    return result._replace(tokens=result.tokens[:, :seq_len].masked_fill(unused, pad_value))


def _with_follower(drafted: Tensor, verified: Verified) -> Tensor:
    """Drafts `[batch, m]` with the verified token behind those that were accepted, `[batch, m + 1]`."""
    padded = torch.cat((drafted, verified.token[:, None]), dim=1)
    return padded.scatter(1, verified.accepted[:, None], verified.token[:, None])


def _up_to_end(tokens: Tensor, counts: Tensor, eos_token: int | None) -> Tensor:
    """How many of the first `counts` tokens of each row are left when the first end token ends it, int64 `[batch]`."""
    if eos_token is None:
        return counts
    ends = (tokens == eos_token).long()
    return torch.minimum(counts, (ends.cumsum(dim=1) - ends == 0).sum(dim=1))


class _RaggedCache:
    """Keys and values of sequences of different lengths, behind which tokens and masks are tried out.

    What is tried out stands behind the longest sequence, and what stays of it is moved to the end of its own.

    Args:
        net: the network.
        padding: int64 `[batch]`, tokens before each prompt that nobody attends to.
        capacity: tokens that fit, with those that are tried out.
    """

    def __init__(self, net: TransformerWrapper, padding: Tensor, capacity: int):
        self._net, self._padding = net, padding
        self._lengths = torch.zeros_like(padding)
        self._cache = KeyValueCache(capacity)

    def run(self, tokens: Tensor, anchors: Tensor, mask_id: int, block_size: int) -> Tensor:
        """Embeddings of causal tokens `[batch, m]` and, for each anchor, of masks that see all up to that token.

        Args:
            tokens: int64, what follows the sequences.
            anchors: int64 `[anchors]`, indices of tokens.
            mask_id: the mask token.
            block_size: masks of an anchor.

        Returns:
            `[batch, m + anchors * block_size, dim]`.
        """
        batch, known = tokens.shape
        device, start = tokens.device, self._cache.length
        masks = len(anchors) * block_size
        groups = torch.arange(masks, device=device) // block_size
        of_masks = anchors[groups] + 1 + torch.arange(masks, device=device) % block_size
        offsets = torch.cat((torch.arange(known, device=device), of_masks))
        positions = ((self._lengths - self._padding)[:, None] + offsets).clamp(0, self._net.max_seq_len - 1)
        sees = torch.cat((torch.arange(known, device=device), anchors[groups]))
        group = torch.cat((torch.full((known,), -1, device=device), groups))

        def rule(query: Tensor, key: Tensor) -> Tensor:
            query, key = query - start, key - start
            past_or_token = (key < 0) | ((key < known) & (key <= sees[query]))
            return past_or_token | ((key >= known) & (group[query] == group[key.clamp(min=0)]))

        slots = torch.arange(start + known + masks, device=device)
        present = (slots >= self._padding[:, None]) & ((slots < self._lengths[:, None]) | (slots >= start))
        inputs = torch.cat((tokens, tokens.new_full((batch, masks), mask_id)), dim=1)
        self._start, self._tried = start, known
        return self._net(
            inputs,
            mask=present,
            positions=positions,
            cache=self._cache,
            rule=rule,
            causal=False,
            return_embeddings=True,
        )

    def keep(self, counts: Tensor) -> None:
        """Keep the first of the tokens that were tried out last, so many of each row, int64 `[batch]`."""
        self._cache.move(self._start, self._tried, self._lengths)
        self._lengths = self._lengths + counts
        self._cache.length = int(self._lengths.max())

    def select(self, rows: Tensor) -> None:
        """Go on with some of the sequences, int64 `[rows]`."""
        self._padding, self._lengths = self._padding[rows], self._lengths[rows]
        self._cache.select(rows)
