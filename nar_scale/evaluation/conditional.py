"""The log-likelihood of a continuation given its context, for all kinds of model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nar_scale.errors import UserError
from nar_scale.evaluation.masked_continuation import Question, decode_greedily, score_questions
from nar_scale.objectives import BlockDiffusionWrapper, Objective, evaluating
from nar_scale.objectives.denoising import Denoiser


@dataclass(frozen=True)
class ConditionalScore:
    """The log-likelihood of a continuation.

    Attributes:
        log_likelihood: in nats, a sum over its tokens; for a model that fills in masks the estimate of a lower bound.
        standard_error: of the estimate over the choice of masks, in nats; 0 where nothing is estimated.
        greedy: whether decoding at temperature 0, one token a call, gives the continuation.
    """

    log_likelihood: float
    standard_error: float
    greedy: bool


@torch.no_grad()
def score_continuations(
    objective: Objective,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    mask_samples: int = 128,
    seed: int = 0,
    batch_size: int = 64,
) -> list[ConditionalScore]:
    """Score continuations.

    Left to right the value is exact. A model that fills in masks sees the context, the masked continuation, and masks
    up to its sequence length, as it does in generation. Its bound is a mean over the number k of masked tokens, uniform
    in 1..m for a continuation of m tokens, and over which k they are: m times their mean cross-entropy. Where there are
    no more than `mask_samples` sets of masked tokens the mean is taken over all of them, so that one pass scores a
    single token exactly; otherwise over `mask_samples` sets with stratified k (as LLaDA, arXiv:2502.09992, but
    stratified). In block diffusion each block is such a question, after the true tokens before it.

    Args:
        objective: the model; not one that is conditional on a class.
        pairs: token ids of each context, at least one left to right, and of each continuation, at least one. What is
            too long for the model loses the beginning of its context.
        mask_samples: sets of masked tokens for each continuation, or each block of it, at most.
        seed: of the masks. All continuations have the same random numbers, which makes differences between them
            more exact.
        batch_size: sequences in a forward pass.

    Raises:
        UserError: an empty continuation, an empty context left to right, a continuation longer than the model's
            sequence, `mask_samples` below 1, or a model that is conditional on a class.
    """
    if mask_samples < 1:
        raise UserError(f"the number of mask samples is {mask_samples}; give at least 1")
    if objective.num_classes is not None:
        raise UserError("continuations cannot be scored by a model that is conditional on a class")
    longest = objective.max_seq_len
    for context, continuation in pairs:
        if not continuation or (objective.net.causal and not context):
            raise UserError("a continuation and, left to right, its context need at least one token each")
        if len(continuation) > longest:
            raise UserError(f"a continuation has {len(continuation)} tokens, the model takes {longest}; shorten it")
    with evaluating(objective):
        if isinstance(objective, Denoiser):
            return _score_by_masks(objective, pairs, mask_samples, seed, batch_size)
        return _score_left_to_right(objective, pairs, batch_size)


def _score_left_to_right(
    objective: Objective, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], batch_size: int
) -> list[ConditionalScore]:
    device = objective.net.token_emb.weight.device
    # the last token is no input, so that a sequence may have one more
    rows = [([*context, *continuation])[-objective.max_seq_len - 1 :] for context, continuation in pairs]
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    scores: dict[int, ConditionalScore] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        inputs = pad_sequence([torch.tensor(rows[number][:-1]) for number in numbers], batch_first=True)
        logits = objective.net(inputs.to(device))
        for number, row in zip(numbers, logits):
            answers = torch.tensor(pairs[number][1], device=device)
            end = len(rows[number]) - 1
            log_probs = row[end - len(answers) : end].double().log_softmax(dim=-1)
            total = log_probs.gather(1, answers[:, None]).sum().item()
            scores[number] = ConditionalScore(total, 0.0, bool((log_probs.argmax(dim=-1) == answers).all()))
    return [scores[number] for number in range(len(rows))]


def _score_by_masks(
    objective: Denoiser,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    mask_samples: int,
    seed: int,
    batch_size: int,
) -> list[ConditionalScore]:
    questions, owners = [], []
    for number, (context, continuation) in enumerate(pairs):
        for question in _questions(objective, context, continuation):
            questions.append(question)
            owners.append(number)
    log_probs = _log_probs(objective)
    greedy = decode_greedily(questions, log_probs, batch_size)
    estimates = score_questions(questions, greedy, log_probs, mask_samples, seed, batch_size)
    totals = [[0.0, 0.0, 1.0] for _ in pairs]
    for owner, (nats, error), (matches, _) in zip(owners, estimates, greedy):
        totals[owner][0] -= nats
        totals[owner][1] += error * error
        totals[owner][2] *= matches
    return [ConditionalScore(total, math.sqrt(variance), bool(matches)) for total, variance, matches in totals]


def _questions(objective: Denoiser, context: Sequence[int], continuation: Sequence[int]) -> list[Question]:
    """What a model that fills in masks is asked about a continuation: all of it at once, or block after block."""
    n = objective.max_seq_len
    context = list(context)[max(0, len(context) + len(continuation) - n) :]
    tokens = [*context, *continuation]
    size = objective.block_size if isinstance(objective, BlockDiffusionWrapper) else n
    questions = []
    for block in range(len(context) // size, -(-len(tokens) // size)):
        first, last = max(len(context), block * size), min(len(tokens), (block + 1) * size)
        visible = torch.full(((block + 1) * size,), objective.mask_id)
        visible[:last] = torch.tensor(tokens[:last])
        questions.append(Question(visible, torch.arange(first, last), objective.mask_id))
    return questions


def _log_probs(objective: Denoiser) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The log-probabilities of tokens at some positions of masked sequences, float64 `[positions, num_tokens]`."""
    device = objective.net.token_emb.weight.device
    within: dict[str, Any] = {}
    if isinstance(objective, BlockDiffusionWrapper):
        size = objective.block_size
        within["rule"] = lambda query, key: key // size <= query // size

    def log_probs(tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        hidden = objective.embed(tokens.to(device), **within)[rows, positions]
        logits = objective.net.to_logits(hidden).double().cpu()
        logits[:, objective.mask_id] = -torch.inf
        return F.log_softmax(logits, dim=-1)

    return log_probs
