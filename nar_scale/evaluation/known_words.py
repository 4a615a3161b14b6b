"""Which words of generated text occur in the training text."""

from __future__ import annotations

from collections.abc import Iterable, Set

from nar_scale.evaluation.split import RUN_SAMPLES, Split
from nar_scale.evaluation.text_statistics import inner_words
from nar_scale.progress import with_progress


def find_words(words: Set[str], split: Split, limit: int | None = None, progress: bool = True) -> set[str]:
    """Look words up in the text of a split.

    The text is read once and only the words that are looked for are kept, so memory does not grow with the text.
    Reading ends when all have been found.

    Args:
        words: as `inner_words` writes them.
        split: of a data set of text, usually the one that the model was trained on.
        limit: number of samples that are read, at most, spread evenly over the split; all if None.
        progress: whether a progress bar is shown, where the output is a terminal.

    Returns:
        those of the words that occur.

    Raises:
        DataError: the data set is not of text, or a sample cannot be read.
    """
    tokenizer, missing = split.tokenizer(), set(words)
    samples = split.index.num_samples if limit is None else min(limit, split.index.num_samples)
    for run in with_progress(split.runs(limit), "look words up", "part", -(-samples // RUN_SAMPLES), progress):
        if not missing:
            break
        missing -= set(inner_words(tokenizer.decode(run.tolist())))
    return set(words) - missing


def known_share(words: Iterable[str], known: Set[str]) -> float | None:
    """The share of words, each counted as often as it occurs, that are known; None if there are no words."""
    found = [word in known for word in words]
    return sum(found) / len(found) if found else None
