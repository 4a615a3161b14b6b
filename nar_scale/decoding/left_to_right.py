"""Left-to-right decoding with a key/value cache: sampling, contrastive decoding, beam search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nar_scale.decoding.filters import LogitFilter, contrastive, draw, filtered
from nar_scale.decoding.options import StepCallback
from nar_scale.decoding.predictor import Predictor, check_finite
from nar_scale.decoding.sequences import Prompts, Sequences
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import TransformerWrapper

_LEAVING = 0.25  # part of a batch that must have ended for the others to go on alone, since moving them takes time


def continue_prompts(
    net: TransformerWrapper,
    prompts: Prompts,
    seq_len: int,
    *,
    seq_lens: Tensor | None = None,
    noise: Noise,
    temperature: float,
    filters: Sequence[LogitFilter],
    eos_token: int | None,
    pad_value: int,
    amateurs: Sequence[tuple[TransformerWrapper, dict[str, float]]] = (),
    use_cache: bool = True,
    compile: bool = False,
    conditions: Mapping[str, Tensor] | None = None,
    callback: StepCallback | None = None,
) -> Tensor:
    """Sample up to `seq_len` tokens after each prompt.

    Sequences that have ended leave the batch, unless it is compiled for its size.

    Args:
        net: a causal network.
        prompts: the beginnings of the sequences.
        seq_len: tokens to generate at most.
        seq_lens: tokens to generate for each prompt, int64 `[batch]`, at most `seq_len`; None for as many.
        noise: the source of all randomness, a stream for each prompt.
        temperature: divides the logits; 0 for the most probable token at each step.
        filters: are applied to the logits one after another, see `filters.draw`.
        eos_token: ends a sequence; when all sequences have ended, generation stops.
        pad_value: follows the end token.
        amateurs: networks for contrastive decoding, with the arguments of `contrastive` for each.
        use_cache: whether keys and values are kept.
        compile: whether each network runs in compiled steps.
        conditions: further arguments of the network, tensors with a batch dimension; `prepend_embeds` stand before
            each prompt.
        callback: watches; tokens that are not there yet are `pad_value`.

    Returns:
        int64 `[batch, generated]`, with `generated` at most `seq_len`, without the prompts.

    Raises:
        NumericalError: a network computes NaN or infinity.
    """
    device = prompts.tokens.device
    sequences = Sequences(prompts, seq_len)
    options: dict[str, Any] = {"use_cache": use_cache, "compile": compile}
    expert = Predictor(net, sequences, conditions=conditions, **options)
    rivals = [(Predictor(amateur, sequences, **options), settings) for amateur, settings in amateurs]
    uniform = noise.uniform_of_streams(0 if temperature == 0 else seq_len)
    generated = torch.full((len(prompts.tokens), seq_len), pad_value, device=device)
    rows = torch.arange(len(generated), device=device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    limits = torch.full_like(rows, seq_len) if seq_lens is None else seq_lens.to(device)
    last_steps = set(limits.tolist())  # after which some sequences leave at once, before they outgrow the network
    for step in range(seq_len):
        logits = expert()
        for rival, settings in rivals:
            logits = contrastive(logits, rival(), **settings)
        drawn = draw(logits, temperature, None if temperature == 0 else uniform[step], filters)
        if eos_token is not None:
            drawn = drawn.masked_fill(ended, pad_value)
        sequences.append(drawn)
        generated[rows, step] = drawn
        if callback is not None:
            callback(generated[:, : step + 1], step + 1)
        at_limit = step + 1 in last_steps
        if eos_token is not None or at_limit:
            ended = ended | (drawn == (-1 if eos_token is None else eos_token)) | (limits <= step + 1)
        if at_limit or (eos_token is not None and (step + 1) % _interval(device) == 0):
            going_on = (~ended).nonzero()[:, 0]
            if len(going_on) == 0:
                break
            if not compile and (at_limit or len(going_on) <= (1 - _LEAVING) * len(rows)):
                rows, ended, uniform, limits = rows[going_on], ended[going_on], uniform[:, going_on], limits[going_on]
                sequences.select(going_on)
                for predictor in (expert, *(rival for rival, _ in rivals)):
                    predictor.select(going_on)
    check_finite(*(predictor.last_logits for predictor in (expert, *(rival for rival, _ in rivals))))
    return generated if eos_token is None else generated[:, : _longest(generated, eos_token)]


def _interval(device: torch.device) -> int:
    """Every how many steps to ask which sequences have ended, for which the host waits on a GPU."""
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
    filters: Sequence[LogitFilter],
    eos_token: int | None,
    pad_value: int,
    use_cache: bool = True,
    conditions: Mapping[str, Tensor] | None = None,
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
    batch, device = len(prompts.tokens), prompts.tokens.device
    sequences = Sequences(prompts, seq_len)
    predictor = Predictor(net, sequences, use_cache=use_cache, conditions=conditions)
    tokens = prompts.tokens[:, :0]
    scores = torch.zeros(batch, 1, dtype=torch.float64, device=device)
    drawn, perturbed = torch.zeros_like(scores), torch.zeros_like(scores)
    ended = torch.zeros(batch, 1, dtype=torch.bool, device=device)
    for step in range(seq_len):
        width = scores.shape[1]
        logits = predictor().view(batch, width, -1)
        log_probs = logits.double().log_softmax(dim=-1)
        # a beam that has ended has one continuation, the padding token, with probability 1
        log_probs = log_probs.masked_fill(ended[..., None], -torch.inf)
        log_probs[..., pad_value] = torch.where(ended, 0.0, log_probs[..., pad_value])
        total = scores[..., None] + log_probs
        ranking = total
        if stochastic and temperature > 0:
            drawable = filtered(log_probs / temperature, filters).log_softmax(dim=-1)
            drawn_total = drawn[..., None] + drawable
            gumbels = noise.derive(step).gumbel(width, logits.shape[-1])
            ranking = _gumbel_with_maximum(drawn_total + gumbels, perturbed)
        best = ranking.flatten(1).topk(beams, dim=1).indices
        if ranking is not total:
            drawn, perturbed = drawn_total.flatten(1).gather(1, best), ranking.flatten(1).gather(1, best)
        scores = total.flatten(1).gather(1, best)
        parents, chosen = best // logits.shape[-1], best % logits.shape[-1]
        rows = (torch.arange(batch, device=device)[:, None] * width + parents).flatten()
        sequences.select(rows)
        predictor.select(rows)
        sequences.append(chosen.flatten())
        tokens = torch.cat((tokens[rows], chosen.view(-1, 1)), dim=1)
        ended = ended.gather(1, parents)
        if eos_token is not None:
            ended = ended | (chosen == eos_token)
            if bool(ended.all()):
                break
    order = scores.argsort(dim=1, descending=True, stable=True)
    continuations = tokens.view(batch, scores.shape[1], -1)
    check_finite(predictor.last_logits)
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
