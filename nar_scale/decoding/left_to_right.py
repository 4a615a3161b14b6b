"""Left-to-right decoding with a key/value cache: sampling, contrastive decoding, beam search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nar_scale.decoding.compiled import CompiledPredictor
from nar_scale.decoding.filters import LogitFilter, contrastive, sample
from nar_scale.decoding.predictor import Predictor
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import TransformerWrapper


@dataclass
class Prompts:
    """A batch of prompts of different lengths, aligned at their ends.

    Attributes:
        tokens: int64 `[batch, n]`, padded on the left.
        padding: int64 `[batch]`, the number of padding tokens of each row.
    """

    tokens: Tensor
    padding: Tensor

    @classmethod
    def align(cls, tokens: Tensor, lengths: Tensor | None, pad_value: int) -> Prompts:
        """Align prompts that are padded on the right.

        Args:
            tokens: int64 `[batch, n]`.
            lengths: int64 `[batch]`, the length of each prompt; None if all have n tokens.
            pad_value: the token that fills up the rows on the left.
        """
        if lengths is None:
            return cls(tokens, torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device))
        padding = tokens.shape[1] - lengths
        source = torch.arange(tokens.shape[1], device=tokens.device) - padding[:, None]
        aligned = tokens.gather(1, source.clamp(min=0)).masked_fill(source < 0, pad_value)
        return cls(aligned, padding)


def continue_prompts(
    net: TransformerWrapper,
    prompts: Prompts,
    seq_len: int,
    *,
    noise: Noise,
    temperature: float,
    logit_filter: LogitFilter,
    filter_kwargs: dict[str, Any],
    eos_token: int | None,
    pad_value: int,
    amateurs: Sequence[tuple[TransformerWrapper, dict[str, float]]] = (),
    use_cache: bool = True,
    compile: bool = False,
    conditions: dict[str, Tensor] | None = None,
) -> Tensor:
    """Sample up to `seq_len` tokens after each prompt.

    Args:
        net: a causal network.
        prompts: the beginnings of the sequences.
        seq_len: tokens to generate at most.
        noise: the source of all randomness, a stream for each prompt.
        temperature: divides the logits; 0 for the most probable token at each step.
        logit_filter: is applied to the logits, see `filters`.
        filter_kwargs: arguments of the filter.
        eos_token: ends a sequence; when all sequences have ended, generation stops.
        pad_value: follows the end token.
        amateurs: networks for contrastive decoding, with the arguments of `contrastive` for each.
        use_cache: whether keys and values are kept.
        compile: whether each network runs as a `CompiledPredictor`.
        conditions: further arguments of the network, tensors with a batch dimension; `prepend_embeds` stand before
            each prompt.

    Returns:
        int64 `[batch, generated]`, with `generated` at most `seq_len`, without the prompts.
    """
    tokens, start = prompts.tokens, prompts.tokens.shape[1]

    def predictor(net: TransformerWrapper, conditions: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
        plain = _predictor(net, prompts, use_cache and not compile, conditions)
        return CompiledPredictor(plain, start + seq_len) if compile else plain

    expert = predictor(net, conditions or {})
    rivals = [(predictor(amateur, {}), settings) for amateur, settings in amateurs]
    uniform = noise.uniform_of_streams(0 if temperature == 0 else seq_len)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    interval = _interval(tokens.device)
    for step in range(seq_len):
        logits = expert(tokens)
        for rival, settings in rivals:
            logits = contrastive(logits, rival(tokens), **settings)
        if temperature == 0:
            drawn = logits.argmax(dim=-1)
        else:
            drawn = sample(logit_filter(logits, **filter_kwargs), temperature, uniform[step])
        tokens = torch.cat((tokens, drawn.masked_fill(ended, pad_value)[:, None]), dim=1)
        if eos_token is not None:
            ended = ended | (drawn == eos_token)
            if (step + 1) % interval == 0 and bool(ended.all()):
                break
    generated = tokens[:, start:]
    return generated if eos_token is None else generated[:, : _longest(generated, eos_token)]


def _predictor(net: TransformerWrapper, prompts: Prompts, use_cache: bool, conditions: dict[str, Tensor]) -> Predictor:
    others = {name: tensor for name, tensor in conditions.items() if name != "prepend_embeds"}
    return Predictor(net, prompts.padding, use_cache, others, conditions.get("prepend_embeds"))


def _interval(device: torch.device) -> int:
    """Every how many steps to ask whether all sequences have ended, for which the host waits on a GPU."""
    return 1 if device.type == "cpu" else 16


def _longest(generated: Tensor, eos_token: int) -> int:
    """Tokens of the longest of some sequences, int64 `[batch, n]`, up to their first end token."""
    ends = (generated == eos_token).int()
    return int((ends.cumsum(dim=1) - ends == 0).sum(dim=1).max())


def search_beams(
    net: TransformerWrapper,
    prompts: Prompts,
    seq_len: int,
    *,
    beams: int,
    noise: Noise,
    temperature: float,
    stochastic: bool,
    logit_filter: LogitFilter,
    filter_kwargs: dict[str, Any],
    eos_token: int | None,
    pad_value: int,
    use_cache: bool = True,
    conditions: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Find probable continuations by keeping the `beams` best ones at every step; arguments as in `continue_prompts`.

    Args:
        beams: continuations that are kept of each prompt.
        stochastic: whether they are drawn without replacement, by Gumbel top-k (stochastic beam search,
            arXiv:1903.06059), instead of being the most probable ones.
        temperature: of the drawing.

    Returns:
        tokens, int64 `[batch, beams, generated]`, the most probable first, and their log-probabilities in nats,
        float64 `[batch, beams]`.

    Raises:
        ConfigError: more beams than tokens in the vocabulary.
    """
    if beams > net.num_tokens:
        raise ConfigError(f"{beams} beams, but only {net.num_tokens} tokens to choose from")
    batch, start = prompts.tokens.shape
    device = prompts.tokens.device
    predictor = _predictor(net, prompts, use_cache, conditions or {})
    tokens = prompts.tokens
    scores = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    drawn, perturbed = torch.zeros_like(scores), torch.zeros_like(scores)
    ended = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    for step in range(seq_len):
        width = scores.shape[1]
        logits = predictor(tokens).view(batch, width, -1)
        log_probs = logits.double().log_softmax(dim=-1)
        # a beam that has ended has one continuation, the padding token, with probability 1
        log_probs = log_probs.masked_fill(ended[..., None], -torch.inf)
        log_probs[..., pad_value] = torch.where(ended, 0.0, log_probs[..., pad_value])
        total = scores[..., None] + log_probs
        ranking = total
        if stochastic and temperature > 0:
            drawable = logit_filter(log_probs / temperature, **filter_kwargs).log_softmax(dim=-1)
            drawn_total = drawn[..., None] + drawable
            gumbels = noise.derive(step).gumbel(width, logits.shape[-1])
            ranking = _gumbel_with_maximum(drawn_total + gumbels, perturbed)
        best = ranking.flatten(1).topk(beams, dim=1).indices
        if ranking is not total:
            drawn, perturbed = drawn_total.flatten(1).gather(1, best), ranking.flatten(1).gather(1, best)
        scores = total.flatten(1).gather(1, best)
        parents, chosen = best // logits.shape[-1], best % logits.shape[-1]
        rows = (torch.arange(batch, device=device)[:, None] * width + parents).flatten()
        predictor.select(rows)
        tokens = torch.cat((tokens[rows], chosen.view(-1, 1)), dim=1)
        ended = ended.gather(1, parents)
        if eos_token is not None:
            ended = ended | (chosen == eos_token)
            if bool(ended.all()):
                break
    order = scores.argsort(dim=1, descending=True, stable=True)
    continuations = tokens[:, start:].view(batch, scores.shape[1], -1)
    return continuations.gather(1, order[..., None].expand_as(continuations)), scores.gather(1, order)


def _gumbel_with_maximum(gumbels: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel variables `[..., n]`, given that the largest of each row is `maximum`, `[...]`.

    The perturbed log-probability of a sequence is then the largest of its continuations' (arXiv:1903.06059,
    appendix B.3), and the best `beams` sequences of all steps are a sample without replacement.
    """
    largest = gumbels.amax(dim=-1, keepdim=True)
    maximum = maximum[..., None]
    above = maximum - gumbels + torch.log1p(-torch.exp((gumbels - largest).clamp(max=0)))
    return maximum - above.clamp(min=0) - torch.log1p(torch.exp(-above.abs()))
