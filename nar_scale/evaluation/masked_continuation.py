"""The bound on the likelihood of some tokens of a sequence, from the answers of a model that fills in masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from nar_scale.masking import Noise, random_subset

LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From sequences, int64 `[batch, n]`, and rows and positions in them, int64 `[m]`, to log-probabilities at each."""


@dataclass(frozen=True)
class Question:
    """Tokens of a sequence that are to be scored.

    Attributes:
        tokens: int64 `[n]`, the sequence with the true tokens, and masks after them.
        positions: int64 `[m]`, of the tokens to be scored.
        mask_id: the mask token.
    """

    tokens: Tensor
    positions: Tensor
    mask_id: int


@dataclass(frozen=True)
class _Row:
    """One set of masked tokens of a question.

    Attributes:
        question: its number.
        hidden: int64 `[k]`, the positions that are masked.
        factor: of the sum of their cross-entropies, in the mean over sets.
    """

    question: int
    hidden: Tensor
    factor: float


class Greedy(NamedTuple):
    """What comes of filling in the most certain token first.

    Attributes:
        matches: whether the result is the true tokens.
        nats: the cross-entropy of all tokens from the first pass, in which all are masked.
    """

    matches: bool
    nats: float


def score_questions(
    questions: Sequence[Question],
    greedy: Sequence[Greedy],
    log_probs: LogProbs,
    samples: int,
    seed: int,
    batch_size: int,
) -> list[tuple[float, float]]:
    """The bound of each question, in nats, and its standard error over the choice of masks.

    Args:
        questions: what is scored.
        greedy: of `decode_greedily`, which has made the pass with all tokens masked.
        log_probs: of the model.
        samples: sets of masked tokens for each question, at most.
        seed: of the masks.
        batch_size: sequences in a forward pass.
    """
    values: list[list[float]] = [[first.nats / len(q.positions)] for q, first in zip(questions, greedy)]
    exact = [2 ** len(question.positions) - 1 <= samples for question in questions]

    def rows() -> Iterator[_Row]:
        for number, question in enumerate(questions):
            sets = _all_sets(question) if exact[number] else _drawn_sets(question, samples, seed)
            for hidden, factor in sets:
                yield _Row(number, hidden, factor)

    for batch in _batches(rows(), questions, batch_size):
        for row, losses in zip(batch, _losses(batch, questions, log_probs)):
            values[row.question].append(row.factor * losses)
    return [(sum(parts), 0.0) if whole else _mean_and_error(parts[1:]) for parts, whole in zip(values, exact)]


def decode_greedily(questions: Sequence[Question], log_probs: LogProbs, batch_size: int) -> list[Greedy]:
    """Fill in the most certain token first, one a call, until one is not the true token.

    Args:
        questions: what is asked.
        log_probs: of the model.
        batch_size: sequences in a forward pass.
    """
    right = [True] * len(questions)
    nats: dict[int, float] = {}
    hidden = {number: question.positions for number, question in enumerate(questions)}
    while hidden:
        remaining: dict[int, Tensor] = {}
        waiting = (_Row(number, positions, 1.0) for number, positions in hidden.items())
        for batch in _batches(waiting, questions, batch_size):
            answers = _answers(batch, questions, log_probs)
            for row, log_prob in zip(batch, answers.split([len(row.hidden) for row in batch])):
                true = questions[row.question].tokens[row.hidden]
                nats.setdefault(row.question, -float(log_prob.gather(1, true[:, None]).sum()))
                best, tokens = log_prob.max(dim=-1)
                place = int(best.argmax())
                right[row.question] = bool(tokens[place] == true[place])
                if right[row.question] and len(row.hidden) > 1:
                    remaining[row.question] = row.hidden[torch.arange(len(row.hidden)) != place]
        hidden = remaining
    return [Greedy(right[number], nats[number]) for number in range(len(questions))]


def _all_sets(question: Question) -> Iterator[tuple[Tensor, float]]:
    """Every set of masked tokens but the whole; the sum over them and the whole is the bound."""
    m = len(question.positions)
    for k in range(1, m):
        for chosen in combinations(range(m), k):
            yield question.positions[list(chosen)], 1 / (k * math.comb(m, k))


def _drawn_sets(question: Question, samples: int, seed: int) -> Iterator[tuple[Tensor, float]]:
    """Random sets with stratified numbers of tokens; the mean over them is an estimate of the bound."""
    m = len(question.positions)
    noise = Noise.of_requests(seed, torch.arange(samples))
    offset = noise.derive(1).uniform()[0]
    counts = ((torch.arange(samples) + offset) / samples * m).long().clamp(max=m - 1) + 1
    chosen = random_subset(torch.ones(samples, m, dtype=torch.bool), counts, noise)
    for row, k in zip(chosen, counts.tolist()):
        yield question.positions[row], m / k


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values from strata in order, and its error from the differences of neighbours."""
    nats = torch.tensor(values, dtype=torch.float64)
    if len(nats) < 2:
        return float(nats.mean()), math.inf
    variance = nats.diff().square().sum() / (2 * (len(nats) - 1))
    return float(nats.mean()), math.sqrt(float(variance) / len(nats))


def _batches(rows: Iterator[_Row], questions: Sequence[Question], batch_size: int) -> Iterator[list[_Row]]:
    """Rows of one length together, at most `batch_size`."""
    waiting: dict[int, list[_Row]] = {}
    for row in rows:
        same = waiting.setdefault(len(questions[row.question].tokens), [])
        same.append(row)
        if len(same) == batch_size:
            yield waiting.pop(len(questions[row.question].tokens))
    yield from waiting.values()


def _answers(batch: Sequence[_Row], questions: Sequence[Question], log_probs: LogProbs) -> Tensor:
    """The log-probabilities at all masked positions of a batch, row after row."""
    tokens = torch.stack([questions[row.question].tokens for row in batch])
    rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(row.hidden) for row in batch]))
    positions = torch.cat([row.hidden for row in batch])
    masks = torch.tensor([questions[row.question].mask_id for row in batch])
    masked = tokens.index_put((rows, positions), masks[rows])
    return log_probs(masked, rows, positions)


def _losses(batch: Sequence[_Row], questions: Sequence[Question], log_probs: LogProbs) -> list[float]:
    """The sum of the cross-entropies of the masked tokens of each row, in nats."""
    answers = torch.cat([questions[row.question].tokens[row.hidden] for row in batch])
    losses = -_answers(batch, questions, log_probs).gather(1, answers[:, None])[:, 0]
    return [float(part.sum()) for part in losses.split([len(row.hidden) for row in batch])]
