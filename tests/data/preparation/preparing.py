"""Preparing small corpora in tests."""

from pathlib import Path

import numpy as np
import pytest

from nar_scale.data import DatasetInfo, load_tokenizer, plan_dataset, prepare
from tests.data.corpora import check_whole, read_split, tree

SETTINGS = {"seq_len": 64, "validation": 0.3, "samples_per_shard": 16, "unit_bytes": 2000}


def plan(corpus, output, **changes):
    return plan_dataset([corpus], output, **{**SETTINGS, "workers": 1, **changes})


def files(output):
    """What lies in the directory of a data set, without the fingerprint of its plan."""
    return sorted(path.name for path in output.iterdir() if path.name != ".prepared")


def check_equal(output, unbroken):
    assert tree(output) == tree(unbroken)
    assert files(output) == ["dataset.json", "train", "validation"]
    check_whole(output)  # and the indices fit


def made(inputs, output, **settings):
    settings = {"seq_len": 64, "validation": 0, "workers": 1, "progress": False, **settings}
    return prepare([inputs] if isinstance(inputs, Path) else inputs, output, **settings)


def write_tokenizer(path, end_token="</s>"):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([end_token])
    tokenizer.save(str(path))
    return str(path)


def decoded(output):
    tokenizer = load_tokenizer(DatasetInfo.load(output).tokenizer, output)
    return tokenizer.decode(np.concatenate([sample.tokens for sample in read_split(output, "train")]))
