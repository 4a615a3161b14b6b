"""Splits, their text under other tokenizers, and the words in them."""

import math

import numpy as np
import pytest

from nar_scale.checkpoint import load_consolidated
from nar_scale.data import load_tokenizer
from nar_scale.errors import DataError, UserError
from nar_scale.evaluation import Split, evaluate_dataset, evaluate_reencoded, find_words
from nar_scale.evaluation import split as split_module
from nar_scale.evaluation.reencoding import ReencodedText, cut_documents, join_documents
from tests.data.preparation.preparing import made, write_tokenizer
from tests.errors import refused
from tests.generation.helpers import export

WORDS = [f"w{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}" for i in range(60)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("split")
    (root / "text").mkdir()
    for number in range(6):
        (root / "text" / f"{number}.txt").write_text(f" {' '.join(WORDS[number * 10 : number * 10 + 10])} end. " * 8)
    made(root / "text", root / "data", seq_len=24)
    write_tokenizer(root / "tokenizer.json")
    return root


@pytest.fixture
def train(directory):
    return Split.open(directory / "data", "train", progress=False)


def test_runs_join_consecutive_samples(train, monkeypatch):
    monkeypatch.setattr(split_module, "RUN_SAMPLES", 10)
    whole = np.concatenate(list(train.runs()))
    assert len(whole) == train.info.splits["train"].tokens
    assert np.array_equal(whole, np.concatenate([train.read(i) for i in range(train.index.num_samples)]))
    some = list(train.runs(30))
    assert [len(run) for run in some[:-1]] == [240, 240]
    assert np.array_equal(some[0], whole[:240])
    assert any(np.array_equal(some[1], whole[start : start + 240]) for start in range(240, len(whole), 240))


def test_a_split_that_is_not_there_is_refused(directory):
    with refused(DataError, "'test'", directory / "data"):
        Split.open(directory / "data", "test")


def test_documents_are_cut_and_joined(directory):
    assert cut_documents([9, 1, 2, 9, 9, 3], 9) == [[1, 2], [3]]
    assert cut_documents([1, 9], None) == [[1, 9]]
    assert cut_documents([], None) == []
    assert join_documents(["ab", "c"], load_tokenizer("byte")) == [97, 98, 256, 99]


def test_the_same_tokenizer_gives_the_same_tokens_again(train, directory):
    """Documents are encoded anew as they were: the likelihood of both is the same to the last token."""
    model = load_consolidated(export(directory / "ar", "autoregressive"))
    direct = evaluate_dataset(model.wrapper, directory / "data", 257, "train", progress=False)
    anew = evaluate_reencoded(model.wrapper, model.tokenizer, train, progress=False)
    assert (anew.tokens, anew.sequences) == (direct.tokens, direct.sequences)
    assert anew.nats_per_token == pytest.approx(direct.nats_per_token, rel=1e-5)
    assert anew.bits_per_byte == pytest.approx(direct.bits_per_byte, rel=1e-5)


def test_bits_per_byte_are_those_of_the_text_whatever_the_tokens(train, directory):
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    text = ReencodedText(train, tokenizer, 16)
    rows = [row for batch in text.batches(5) for row in batch.tokens.flatten()[: int(batch.lengths.sum())].tolist()]
    assert text.tokens == len(rows)
    assert text.bytes == train.info.splits["train"].bytes
    assert tokenizer.decode(cut_documents(rows, tokenizer.end_token)[0]) == (directory / "text" / "0.txt").read_text()
    model = load_consolidated(
        export(directory / "bpe", "non_autoregressive", tokenizer.vocabulary_size, None), verify=False
    )
    likelihood = evaluate_reencoded(model.wrapper, tokenizer, train, progress=False)
    bits = likelihood.nats_per_token * likelihood.tokens / math.log(2)
    assert likelihood.bits_per_byte == pytest.approx(bits / text.bytes, rel=1e-6)


def test_a_model_that_needs_classes_is_not_given_text_without(train, directory):
    model = load_consolidated(
        export(directory / "classes", "non_autoregressive", objective={"num_classes": 2}, data={"class_field": "cls"})
    )
    with refused(UserError, "class"):
        evaluate_reencoded(model.wrapper, model.tokenizer, train)


def test_words_are_found_wherever_they_stand(train, monkeypatch):
    monkeypatch.setattr(split_module, "RUN_SAMPLES", 10_000)
    wanted = {*WORDS, "nowhere", "nor"}
    assert find_words(wanted, train, progress=False) == set(WORDS)
    assert find_words(set(), train, progress=False) == set()
    few = find_words(wanted, train, limit=20, progress=False)
    assert few < set(WORDS)
    assert WORDS[1] in few
