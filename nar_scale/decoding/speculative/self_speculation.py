"""Self-speculation: one network drafts blocks of tokens by diffusion and verifies them left to right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nar_scale.decoding.filters import LogitFilter, filtered, is_greedy
from nar_scale.decoding.options import StepCallback
from nar_scale.decoding.predictor import check_finite
from nar_scale.decoding.sequences import Prompts
from nar_scale.decoding.speculative.continuation import Continued
from nar_scale.decoding.speculative.verification import VerificationNoise, propose, verify
from nar_scale.masking import Noise
from nar_scale.model import KeyValueCache, TransformerWrapper

_PROPOSE, _DRAW, _ACCEPT = range(200, 203)  # streams of a sequence's noise, with a number for each of its tokens


@torch.no_grad()
def self_speculate(
    net: TransformerWrapper,
    prompts: Prompts,
    seq_len: int,
    *,
    mask_id: int,
    block_size: int,
    noise: Noise,
    temperature: float,
    draft_temperature: float,
    shared_calls: bool,
    filters: Sequence[LogitFilter],
    eos_token: int | None,
    pad_value: int,
    seq_lens: Tensor | None = None,
    callback: StepCallback | None = None,
) -> Continued:
    """Sample up to `seq_len` tokens after each prompt, several in a network call, with the distribution of one a call.

    A call that drafts sees the last known token, which yields one more, and a block of masks, which draft what follows
    that one. A call that verifies sees this token and the drafted ones, and yields those that are accepted and one
    more. With shared calls it also sees a block of masks behind each, in case it is the last that is accepted.

    Args:
        net: a causal network that was also trained as block diffusion.
        prompts: the beginnings of the sequences.
        seq_len: tokens to generate at most; with the prompt no more than `max_seq_len`.
        mask_id: the mask token, of which the network's logits are -inf.
        block_size: masks in a block.
        noise, temperature, filters, seq_lens, pad_value, callback: as in `continue_prompts`.
        draft_temperature: divides the logits of drafts; 0 for the most probable token at each place.
        shared_calls: whether a call verifies a draft and makes the next one, instead of one after another.
        eos_token: ends a sequence, which leaves the batch.

    Raises:
        NumericalError: the network computes NaN or infinity.
    """
    batch, device = len(prompts.tokens), prompts.tokens.device
    limits = torch.full((batch,), seq_len, device=device) if seq_lens is None else seq_lens.to(device)
    rows = (limits > 0).nonzero()[:, 0]
    generated = torch.full((batch, seq_len + block_size), pad_value, device=device)
    lengths, calls = torch.zeros(2, batch, dtype=torch.int64, device=device)
    uniform = {stream: noise.derive(stream).uniform(seq_len + block_size) for stream in (_PROPOSE, _DRAW, _ACCEPT)}
    trial = _Trial(net, prompts.select(rows), seq_len, mask_id, block_size)
    drafted, proposals = generated[:, :0], None
    while len(rows):
        masked = shared_calls or not drafted.shape[1]
        of_tokens, of_masks = trial.run(drafted, masked)
        drafts, places = drafted.shape[1], lengths[rows, None] + torch.arange(block_size, device=device)
        verified = verify(
            drafted,
            filtered(trial.logits(of_tokens), () if is_greedy(temperature) else filters),
            temperature,
            _noise_at({name: each[rows] for name, each in uniform.items()}, places, drafts),
            proposals=proposals,
            counts=(limits[rows] - 1 - lengths[rows]).clamp(max=drafts),
        )
        gained, ended = _until_end(verified.tokens, verified.accepted + 1, eos_token)
        generated[rows[:, None], places[:, : drafts + 1]] = verified.tokens
        lengths[rows] += gained
        calls[rows] += 1
        if callback is not None:
            callback(_only_first(generated[:, : int(lengths.max())], lengths, pad_value), int(calls.max()))
        going_on = (~ended & (lengths[rows] < limits[rows])).nonzero()[:, 0]
        if not len(going_on):
            break
        trial.keep(verified.tokens, verified.accepted, going_on)
        rows = rows[going_on]
        drafted, proposals = generated[rows, :0], None
        if not masked:
            continue
        masks = of_masks[going_on, verified.accepted[going_on], 1:]
        places = lengths[rows, None] + torch.arange(block_size - 1, device=device)
        drafted, proposals = propose(
            filtered(trial.logits(masks), () if is_greedy(draft_temperature) else filters),
            draft_temperature,
            uniform[_PROPOSE][rows].gather(1, places),
        )
    check_finite(trial.last_logits)
    return Continued(_only_first(generated[:, :seq_len], lengths, pad_value), calls)


def _noise_at(uniform: dict[int, Tensor], places: Tensor, drafts: int) -> VerificationNoise:
    """The numbers of the places of a draft, from those of all places."""
    draw, accept = uniform[_DRAW], uniform[_ACCEPT]
    return VerificationNoise(draw.gather(1, places[:, : drafts + 1]), accept.gather(1, places[:, :drafts]))


def _only_first(tokens: Tensor, counts: Tensor, pad_value: int) -> Tensor:
    """The first `counts` tokens of each row, and padding behind them."""
    return tokens.masked_fill(torch.arange(tokens.shape[1], device=tokens.device) >= counts[:, None], pad_value)


def _until_end(tokens: Tensor, counts: Tensor, eos_token: int | None) -> tuple[Tensor, Tensor]:
    """How many of the first `counts` tokens of each row are left up to an end token, and whether there is one."""
    if eos_token is None:
        return counts, torch.zeros_like(counts, dtype=torch.bool)
    ends = (tokens == eos_token).long()
    up_to_end = (ends.cumsum(dim=1) - ends == 0).sum(dim=1)
    return torch.minimum(counts, up_to_end), ends.any(dim=1)


class _Trial:
    """Calls of a network in which tokens are tried out behind sequences of different lengths.

    Args:
        net: the network.
        prompts: the beginnings of the sequences, which the first call takes in.
        room: tokens that sequences may grow by.
        mask_id: the mask token.
        block_size: masks in a block.
    """

    def __init__(self, net: TransformerWrapper, prompts: Prompts, room: int, mask_id: int, block_size: int):
        batch, longest = prompts.tokens.shape
        device = prompts.tokens.device
        self._net, self._mask_id, self._block_size = net, mask_id, block_size
        self._cache = KeyValueCache(longest + room + block_size * (block_size + 1))
        self.last_logits: Tensor | None = None
        self._past = torch.zeros(batch, dtype=torch.int64, device=device)  # tokens in the cache
        self._known = prompts.tokens  # those that are not there yet, of each row the first so many
        self._counts = torch.full_like(self._past, longest) if prompts.lengths is None else prompts.lengths

    def run(self, drafted: Tensor, masked: bool) -> tuple[Tensor, Tensor]:
        """Take in what is known of the sequences, and try out a draft.

        Args:
            drafted: int64 `[batch, m]`; where there is one, a single token was not taken in before.
            masked: whether there are masks.

        Returns:
            embeddings of the last known token and the drafted ones, `[batch, m + 1, dim]`, and of a block of masks for
            each of these, which sees all up to that token, `[batch, m + 1, block_size, dim]` (0 instead of m + 1
            without masks).
        """
        tokens = torch.cat((self._known, drafted), dim=1)
        (batch, width), device, size = tokens.shape, tokens.device, self._block_size
        anchors = self._counts[:, None] - 1 + torch.arange(drafted.shape[1] + 1, device=device)
        index = torch.arange(anchors.shape[1] * size if masked else 0, device=device)
        own = torch.arange(width, device=device).expand(batch, -1)
        sees = torch.cat((own, anchors[:, index // size]), dim=1)  # the last token that each token or mask attends to
        block = torch.cat((torch.full_like(own[0], -1), index // size))
        places = torch.cat((own, anchors[:, index // size] + 1 + index % size), dim=1)
        past = self._past[:, None, None]

        def rule(query: Tensor, key: Tensor) -> Tensor:
            """Of all queries in their order, so that their indices need not be looked at."""
            key = key - past
            of_block = block[key.clamp(0, len(block) - 1)]
            return (key <= sees[..., None]) & (key < width) | (key >= width) & (of_block == block[:, None])

        masks = tokens.new_full((batch, len(index)), self._mask_id)
        hidden = self._net(
            torch.cat((tokens, masks), dim=1),
            positions=(self._past[:, None] + places).clamp(max=self._net.max_seq_len - 1),
            cache=self._cache,
            rule=rule,
            causal=False,
            return_embeddings=True,
        )
        rows = torch.arange(batch, device=device)[:, None]
        return hidden[rows, anchors], hidden[:, width:].unflatten(1, (len(index) // size, size))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Logits of embeddings `[..., dim]`, float32 `[..., num_tokens]`."""
        self.last_logits = self._net.to_logits(embeddings).float()
        return self.last_logits

    def keep(self, tokens: Tensor, accepted: Tensor, rows: Tensor) -> None:
        """Keep what was accepted, and go on with some of the rows.

        Args:
            tokens: int64 `[batch, m + 1]`, accepted ones and one more, which the next call takes in.
            accepted: int64 `[batch]`, how many of the m drafted tokens.
            rows: int64 `[rows]`, not empty.
        """
        self._past = self._past + self._counts + accepted
        self._cache.truncate(self._past)
        if len(rows) < len(tokens):
            self._cache.select(rows)
        self._past = self._past[rows]
        self._known = tokens.gather(1, accepted[:, None])[rows]
        self._counts = torch.ones_like(self._past)
