import json
import sys

import numpy as np
import pytest

from nar_scale.data import ByteTokenizer, load_tokenizer
from nar_scale.errors import DataError, UserError
from tests.errors import refused


def test_bytes_survive_a_round_trip():
    text = "naïve ▒ \t\n".encode() + bytes(range(128))
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.uint8  # a huge document is not held eight times
    assert ids.tolist() == list(text)
    assert ByteTokenizer().decode(ids) == text.decode()
    assert ByteTokenizer().encode(text.decode()).tolist() == list(text)
    assert ByteTokenizer().encode("half a pair: \ud800").tolist() == list(b"half a pair: ?")


def test_special_ids_are_shown():
    assert ByteTokenizer().decode([104, 105, 256, 257, 300, 255]) == "hi\n<|end|>\n▒▒\ufffd"


def test_byte_tokenizer_is_found_again(tmp_path):
    tokenizer = load_tokenizer("byte")
    tokenizer.save(tmp_path)
    again = load_tokenizer(tokenizer.name, tmp_path)
    assert (again.vocabulary_size, again.end_token) == (257, 256)


def write_tokenizer(path, end_token):
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[UNK]": 0, "one": 1, "two": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([end_token])
    tokenizer.enable_truncation(2)
    tokenizer.save(str(path))


@pytest.mark.parametrize("end_token", ["<|endoftext|>", "</s>", "[SEP]", "<eos>"])
def test_hugging_face_tokenizer(tmp_path, end_token):
    write_tokenizer(tmp_path / "words.json", end_token)
    tokenizer = load_tokenizer(tmp_path / "words.json")
    assert (tokenizer.vocabulary_size, tokenizer.end_token) == (4, 3)
    assert tokenizer.encode(b"one two two one three").tolist() == [1, 2, 2, 1, 0]  # not truncated to 2
    assert tokenizer.encode("one two").tolist() == tokenizer.encode(b"one two").tolist() == [1, 2]
    assert tokenizer.encode("one \ud800").tolist() == [1, 0]
    assert tokenizer.decode([1, 2, 3, 4]) == "one two\n<|end|>\n▒"
    saved = tmp_path / "saved"
    saved.mkdir()
    tokenizer.save(saved)
    for again in (load_tokenizer(tokenizer.name, saved), load_tokenizer(saved)):
        assert again.encode(b"two").tolist() == [2]


def test_tokenizer_without_end_token_is_refused(tmp_path):
    write_tokenizer(tmp_path / "words.json", "<stop>")
    with refused(DataError, tmp_path / "words.json", "<|endoftext|>"):
        load_tokenizer(tmp_path / "words.json")


def test_damaged_tokenizer_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "t.json").write_text(json.dumps({"model": 3}))
    with refused(DataError, tmp_path / "t.json"):
        load_tokenizer(tmp_path / "t.json")


def test_missing_tokenizer_is_refused(tmp_path):
    with refused(DataError, tmp_path / "nowhere.json", "No such file"):
        load_tokenizer(tmp_path / "nowhere.json")


def test_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused(UserError, tmp_path / "t.json", "pip install nar_scale[tokenizers]"):
        load_tokenizer(tmp_path / "t.json")


def byte_level(path, special=("<|begin_of_text|>", "<|end_of_text|>"), ordinary=()):
    """A byte-level tokenizer, of which ids below 256 are bytes."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(ordinary))
    tokenizer.save(str(path))
    return path


def test_the_end_token_is_named_where_it_has_another_name(tmp_path):
    path = byte_level(tmp_path / "t.json")
    with refused(DataError, path, "<|endoftext|>", "--end-token", "<|begin_of_text|>, <|end_of_text|>"):
        load_tokenizer(path)
    for end_token in ("<|end_of_text|>", 257):
        assert load_tokenizer(path, end_token=end_token).end_token == 257
    for missing in ("<|im_end|>", 999):
        with refused(DataError, path, missing, "--end-token"):
            load_tokenizer(path, end_token=missing)
    with refused(UserError, "'</s>'", 256):
        load_tokenizer("byte", end_token="</s>")
    assert load_tokenizer("byte", end_token=256).end_token == 256


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_in_text_are_text(tmp_path, special):
    names = ["<|endoftext|>", "<|im_start|>"]
    path = byte_level(tmp_path / "t.json", names if special else names[1:], () if special else names[:1])
    tokenizer = load_tokenizer(path)
    text = "a<|endoftext|>b <|im_start|> <|endoftext|>\n<|endoftext>"
    ids = tokenizer.encode(text.encode())
    assert len(ids) == len(text)
    assert ids.max() < 256
    assert tokenizer.decode(ids) == text
    assert tokenizer.count_special_tokens(text.encode()) == 3
    assert tokenizer.decode([tokenizer.end_token]) == "\n<|end|>\n"


def unigram(tokenizers, pieces):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([(piece, -3.0) for piece in pieces], 2, False))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        tokenizers.pre_tokenizers.Metaspace(),
        tokenizers.decoders.Metaspace(),
    )
    return tokenizer


def byte_pairs(tokenizers, pieces):
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "</", "s>"])}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>"))


def words(tokenizers, pieces):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(pieces, range(99))), unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("kind", [unigram, byte_pairs, words])
def test_special_tokens_that_are_pieces_of_the_vocabulary_are_text_too(tmp_path, kind):
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", " ", *"abs/<>"]
    made = kind(tokenizers, pieces)
    made.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra>"])
    made.add_tokens(["bab"])
    made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    made.save(str(tmp_path / "t.json"))
    tokenizer = load_tokenizer(tmp_path / "t.json")
    special = [0, 1, made.token_to_id("<extra>")]
    text = "a </s> b</s>a<pad> <extra> </s>"
    ids = tokenizer.encode(text.encode())
    assert not np.isin(ids, special).any()
    assert tokenizer.count_special_tokens(text.encode()) == 5
    plain = made.encode("ab a", add_special_tokens=False).ids
    assert tokenizer.encode(b"ab a").tolist() == plain
    assert made.token_to_id("bab") in tokenizer.encode(b"a bab")
    assert set(special) <= set(load_tokenizer(tmp_path / "t.json", special_tokens="ids").encode(text.encode()))
    if kind is unigram:
        assert tokenizer.decode(tokenizer.encode(b"a</s>b")) == "a</s>b"
    assert "<pad>" in tokenizer.decode([0])


def test_special_tokens_in_text_are_ids_where_that_is_wanted(tmp_path):
    path = byte_level(tmp_path / "t.json", ["<|endoftext|>", "<|im_start|>"])
    tokenizer = load_tokenizer(path, special_tokens="ids")
    assert tokenizer.encode(b"a<|endoftext|><|im_start|>").tolist() == [*load_tokenizer(path).encode(b"a"), 256, 257]
    assert load_tokenizer("byte", special_tokens="ids").encode(b"<|end|>").tolist() == list(b"<|end|>")


def test_ordinary_tokens_that_were_added_are_kept(tmp_path):
    tokenizer = load_tokenizer(byte_level(tmp_path / "t.json", ["<eos>"], ["   "]))
    assert tokenizer.encode(b"a   b").tolist()[1:2] == [257]
    assert tokenizer.count_special_tokens(b"a   b") == ByteTokenizer().count_special_tokens(b"<eos>") == 0
