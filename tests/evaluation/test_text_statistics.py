import math

import pytest

from nar_scale.evaluation import count_text, known_share
from nar_scale.evaluation.text_statistics import (
    distinct_share,
    inner_words,
    repeated_share,
    split_words,
    unigram_entropy,
)


def test_the_entropy_is_a_mean_over_sequences_of_that_of_their_own_tokens():
    assert unigram_entropy([[1, 2, 3, 4]]) == pytest.approx(math.log(4))
    assert unigram_entropy([[5, 5, 5]]) == 0
    assert unigram_entropy([[1, 1, 1, 2], [7, 7]]) == pytest.approx((-0.75 * math.log(0.75) + 0.25 * math.log(4)) / 2)
    assert unigram_entropy([[], [1, 2]]) == pytest.approx(math.log(2))
    assert unigram_entropy([]) == 0


def test_words_are_split_from_marks():
    assert split_words("x = f(a_1, 2)\n") == ["x", "=", "f", "(", "a_1", ",", "2", ")"]


def test_distinct_counts_over_all_texts_and_repetition_within_each():
    texts = [["a", "b", "a", "b", "a", "b"], ["a", "b"]]
    assert distinct_share(texts, 1) == pytest.approx(2 / 8)
    assert distinct_share(texts, 2) == pytest.approx(2 / 6)
    assert distinct_share(texts, 7) == 0
    assert repeated_share(texts, 2) == pytest.approx((1 - 2 / 5 + 0) / 2)
    assert repeated_share([["a"]], 4) == 0


def test_words_at_the_edges_are_left_out():
    assert inner_words("begin the Middle of_it end") == ["the", "middle"]
    assert inner_words("one") == []
    assert inner_words(" naïve x2y ") == ["naïve"]


def test_the_share_of_known_words_counts_occurrences():
    assert known_share(["a", "a", "b"], {"a"}) == pytest.approx(2 / 3)
    assert known_share([], {"a"}) is None


def test_all_at_once():
    counts = count_text([[1, 1], [2, 3]], ["x x x x x", "x y z w v"])
    assert counts.entropy == pytest.approx(math.log(2) / 2)
    assert counts.distinct == {1: 0.5, 2: 5 / 8, 3: 4 / 6, 4: 3 / 4}
    assert counts.repetition == pytest.approx(0.25)
