"""The quality of samples beside their diversity and their cost: a frontier of settings, never one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from nar_scale.data import Tokenizer
from nar_scale.evaluation import Reference, count_text, known_share
from nar_scale.evaluation.reencoding import join_documents
from nar_scale.evaluation.text_statistics import inner_words
from nar_scale.reporting.mauve import measure_mauve
from nar_scale.reporting.sampling import SampleSet, Setting

Encode = Callable[[Sequence[str]], list[int]]
_BEGINNING = 400  # characters of a sample


@dataclass(frozen=True)
class TextQuality:
    """What is measured of a set of texts.

    Attributes:
        samples: number of texts.
        tokens_per_sample: mean length, in the tokens in which the entropy is.
        generative_perplexity: under the reference model, per token of its own; None without one.
        generative_perplexity_error: its standard error over the texts.
        generative_bits_per_byte: the same likelihood per byte of text.
        entropy: of the token frequencies of a text, in nats; in tokens of the reference model, without one of the data.
        distinct: by n from 1 to 4, the share of n-grams of words that are different.
        repetition: share of 4-grams of words that occurred before in the same text.
        known_words: share of the words of at least three letters that occur in the training text; None if it was not
            read, or there are no words.
        words: number of these words.
        mauve: against the evaluated text, see `measure_mauve`; None where it was not asked for.
    """

    samples: int
    tokens_per_sample: float
    generative_perplexity: float | None
    generative_perplexity_error: float | None
    generative_bits_per_byte: float | None
    entropy: float
    distinct: dict[int, float]
    repetition: float
    known_words: float | None
    words: int
    mauve: float | None = None


@dataclass(frozen=True)
class FrontierPoint:
    """The quality of the samples of one setting and what they cost.

    Attributes:
        setting: how they were drawn.
        quality: of the texts.
        calls_per_sample: mean number of forward passes that a sample took.
        tokens_per_call: generated tokens, in the model's own, over forward passes.
        tokens_per_second: generated tokens, in the model's own, over wall time.
        sample: the beginning of the first sample, which was not chosen by its quality; a line for each document.
    """

    setting: Setting
    quality: TextQuality
    calls_per_sample: float
    tokens_per_call: float
    tokens_per_second: float
    sample: str


def words_in(texts: Sequence[Sequence[str]]) -> list[str]:
    """The words of at least three letters in samples that are lists of documents."""
    return [word for documents in texts for word in inner_words("\n".join(documents))]


def measure_texts(
    texts: Sequence[Sequence[str]],
    reference: Reference | None,
    tokenizer: Tokenizer,
    known: Set[str] | None,
    human: Sequence[Sequence[str]] | None = None,
) -> TextQuality:
    """Measure texts.

    Args:
        texts: samples, each a list of documents.
        reference: scores them; None for no generative perplexity.
        tokenizer: whose tokens the entropy is in where there is no reference.
        known: the words among `words_in` that occur in the training text; None if it was not read.
        human: as many other texts, for MAUVE under the reference; None to leave it out.

    Raises:
        DataError: there is no text to score.
        UserError: MAUVE cannot be measured.
    """
    encode: Encode = reference.join if reference else lambda documents: join_documents(documents, tokenizer)
    tokens = [encode(documents) for documents in texts]
    counts = count_text(tokens, ["\n".join(documents) for documents in texts])
    words = words_in(texts)
    perplexity = error = bits_per_byte = mauve = None
    if reference is not None:
        if human is not None:
            mauve = measure_mauve(reference, tokens, [reference.join(documents) for documents in human])
        likelihood = reference.likelihood(tokens)
        perplexity, error = likelihood.perplexity, likelihood.perplexity * likelihood.standard_error
        size = sum(len(document.encode()) for documents in texts for document in documents)
        bits_per_byte = likelihood.nats_per_token * likelihood.tokens / math.log(2) / size
    return TextQuality(
        len(texts),
        sum(map(len, tokens)) / len(texts),
        perplexity,
        error,
        bits_per_byte,
        counts.entropy,
        counts.distinct,
        counts.repetition,
        None if known is None else known_share(words, known),
        len(words),
        mauve,
    )


def measure_samples(
    samples: SampleSet,
    reference: Reference | None,
    tokenizer: Tokenizer,
    known: Set[str] | None,
    human: Sequence[Sequence[str]] | None = None,
) -> FrontierPoint:
    """Measure the samples of one setting; arguments as in `measure_texts`."""
    return FrontierPoint(
        samples.setting,
        measure_texts(samples.documents, reference, tokenizer, known, human),
        samples.network_calls / len(samples.documents),
        samples.tokens / samples.network_calls,
        samples.tokens / samples.seconds,
        "\n".join(samples.documents[0])[:_BEGINNING],
    )


def at_entropy(points: Sequence[FrontierPoint], entropy: float) -> list[FrontierPoint]:
    """Of each sampler with each number of steps, the temperature whose samples have the entropy nearest to a given one.

    Perplexities are compared at equal entropy (arXiv:2604.02718): a low temperature lowers both.
    """
    groups: dict[tuple[str | None, int | None], list[FrontierPoint]] = {}
    for point in points:
        groups.setdefault((point.setting.sampler, point.setting.steps), []).append(point)
    return [min(group, key=lambda point: abs(point.quality.entropy - entropy)) for group in groups.values()]


def typical_point(points: Sequence[FrontierPoint], entropy: float) -> FrontierPoint | None:
    """The setting whose sample stands for a model: of those `at_entropy`, the one with the best perplexity.

    Without a reference model it is the one with the most network calls, which is the least hurried; None if there are
    no points.
    """

    def rank(point: FrontierPoint) -> float:
        perplexity = point.quality.generative_perplexity
        return -point.calls_per_sample if perplexity is None else perplexity

    return min(at_entropy(points, entropy), key=rank, default=None)
