"""Documents into samples: every token once, in order, against a packer of three lines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nar_scale.data.preparation.packing import Packer

documents_of_tokens = st.lists(st.integers(1, 40), max_size=20).map(
    lambda lengths: [np.arange(100 * i, 100 * i + length) for i, length in enumerate(lengths)]
)


def pack(documents, sequence_length, packed=True, document_ids=True, labels=None):
    packer = Packer(sequence_length, packed, document_ids)
    samples = []
    for number, document in enumerate(documents):
        samples += packer.add(document, labels[number] if labels else None)
    return [*samples, *packer.finish()]


@settings(deadline=None)
@given(documents_of_tokens, st.integers(2, 17))
def test_joined_documents_are_cut_every_sequence_length(documents, sequence_length):
    samples = pack(documents, sequence_length)
    joined = np.concatenate([*documents, []])
    assert [len(sample.tokens) for sample in samples[:-1]] == [sequence_length] * (len(samples) - 1)
    assert all(0 < len(sample.tokens) <= sequence_length for sample in samples)
    assert np.concatenate([sample.tokens for sample in samples] + [[]]).tolist() == joined.tolist()
    assert {sample.label for sample in samples} <= {None}


@settings(deadline=None)
@given(documents_of_tokens, st.integers(2, 17))
def test_each_document_alone_is_cut_every_sequence_length(documents, sequence_length):
    samples = pack(documents, sequence_length, packed=False, labels=list(range(len(documents))))
    cuts = [
        document[i : i + sequence_length] for document in documents for i in range(0, len(document), sequence_length)
    ]
    assert [sample.tokens.tolist() for sample in samples] == [cut.tolist() for cut in cuts]
    assert [sample.label for sample in samples] == [cut[0] // 100 for cut in cuts]
    assert all((sample.documents == 0).all() for sample in samples)


@settings(deadline=None)
@given(documents_of_tokens, st.integers(2, 17))
def test_document_numbers_start_at_0_and_change_exactly_between_documents(documents, sequence_length):
    for sample in pack(documents, sequence_length):
        assert sample.documents.dtype == np.uint8
        assert sample.documents.tolist() == (sample.tokens // 100 - sample.tokens[0] // 100).tolist()


def test_document_numbers_are_left_out_unless_asked_for():
    assert [sample.documents for sample in pack([np.arange(5)], 3, document_ids=False)] == [None, None]


@pytest.mark.parametrize(("sequence_length", "dtype"), [(255, np.uint8), (256, np.uint16), (65_536, np.uint32)])
def test_document_numbers_fit_even_if_every_token_is_a_document(sequence_length, dtype):
    (sample,) = pack([np.array([7])] * sequence_length, sequence_length)
    assert sample.documents.dtype == dtype
    assert sample.documents.tolist() == list(range(sequence_length))


def test_documents_longer_than_several_samples():
    samples = pack([np.arange(3), np.arange(10, 21), np.arange(30, 32)], 4)
    assert [sample.tokens.tolist() for sample in samples] == [
        [0, 1, 2, 10],
        [11, 12, 13, 14],
        [15, 16, 17, 18],
        [19, 20, 30, 31],
    ]
    assert [sample.documents.tolist() for sample in samples] == [[0, 0, 0, 1], [0] * 4, [0] * 4, [0, 0, 1, 1]]


def test_samples_come_as_soon_as_they_are_full():
    packer = Packer(4, packed=True, document_ids=False)
    counts = [len(list(packer.add(np.arange(length)))) for length in (3, 1, 9, 2)]
    assert counts == [0, 1, 2, 0]
    assert [len(sample.tokens) for sample in packer.finish()] == [3]
    assert list(packer.finish()) == []


def test_types_are_kept():
    samples = pack([np.arange(3, dtype=np.uint16), np.arange(3, dtype=np.uint16)], 2)
    assert {sample.tokens.dtype for sample in samples} == {np.dtype(np.uint16)}
