"""The inexact stream over shards that can only be read from start to end."""

import bz2
import errno
import gzip
import lzma
import os
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch

from nar_scale.data import SampleFormat, SequentialStream, find_sequential_shards
from nar_scale.data.loading.tar_stream import read_tar_stream
from nar_scale.errors import ConfigError, DataError
from tests.data.shard_files import write_samples
from tests.errors import assert_names, refused


def compressed(directory, counts, first=0):
    for number, count in enumerate(counts):
        shard = directory / f"shard-{number}.tar"
        write_samples(shard, [np.array([i, i + 1]) for i in range(first, first + count)], first_key=first)
        (directory / f"shard-{number}.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
        first += count
    return find_sequential_shards(str(directory), "*.tar.gz")


def stream(urls, rank=0, world_size=1, **changes):
    settings = {"seed": 0, "global_batch_size": 8, "micro_batch_size": 2, "workers": 0, **changes}
    return SequentialStream(urls, SampleFormat(3, 5000), rank=rank, world_size=world_size, **settings)


def first_tokens(batches, count):
    return [int(token) for batch in islice(batches, count) for token in batch.tokens[:, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_compressed_shards(tmp_path, workers):
    urls = compressed(tmp_path, [3, 700, 800])
    batches = list(islice(stream(urls, workers=workers), 300))
    assert [int(position) for batch in batches for position in batch.positions] == list(range(600))
    for batch in batches:
        assert torch.equal(
            batch.tokens, torch.stack([batch.tokens[:, 0], batch.tokens[:, 0] + 1, batch.tokens[:, 2]], 1)
        )
        assert torch.equal(batch.sample_ids, batch.positions)
        assert batch.lengths.tolist() == [2, 2]
    seen = first_tokens(batches, 300)
    assert len(set(seen)) > 200
    assert seen != sorted(seen)


def test_more_ranks_than_shards_and_uneven_ones_do_not_hang(tmp_path):
    urls = compressed(tmp_path, [1, 40])
    streams = [first_tokens(stream(urls, rank, 4), 30) for rank in range(4)]
    assert [len(tokens) for tokens in streams] == [60] * 4
    assert len({tuple(tokens) for tokens in streams}) == 4


def test_a_resumed_stream_takes_another_order(tmp_path):
    urls = compressed(tmp_path, [2000])
    assert first_tokens(stream(urls), 20) == first_tokens(stream(urls), 20)
    resumed = stream(urls, start_sample=80)
    assert first_tokens(resumed, 20) != first_tokens(stream(urls), 20)
    assert next(iter(resumed)).positions.tolist() == [80, 81]


def test_a_command_is_run_by_a_shell(tmp_path):
    compressed(tmp_path, [30])
    urls = find_sequential_shards("", f"pipe:gunzip -c {tmp_path}/shard-0.tar.gz | cat")
    assert set(first_tokens(stream(urls), 40)) <= set(range(30))


@pytest.mark.parametrize(
    ("harm", "named", "is_of_sample"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-200]), (), False),
        (lambda shard: shard.write_bytes(b"hello" * 500), (), False),
        (lambda shard: shard.unlink(), (os.strerror(errno.ENOENT),), False),
        (lambda shard: write_samples(shard, [np.array([6000])]), ("000000000", 6000, 5000), True),
        (
            lambda shard: write_samples(shard, [np.array([1])], field="ids.npy"),
            ("000000000", "'tokens.npy'", "ids.npy"),
            True,
        ),
        (lambda shard: write_samples(shard, []), (), False),
    ],
)
def test_a_fault_is_named_or_told_and_never_hangs(tmp_path, harm, named, is_of_sample):
    urls = compressed(tmp_path, [30])
    harm(tmp_path / "shard-0.tar.gz")
    with refused(DataError, tmp_path / "shard-0.tar.gz", *named):
        list(islice(stream(urls), 3000))
    if is_of_sample:
        skipped = list(islice(stream(urls, skip_faults=True), 100))
        faults = [fault for batch in skipped for fault in batch.faults]
        assert faults
        for fault in faults:
            assert_names(fault, tmp_path / "shard-0.tar.gz", *named)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_cut_anywhere_is_never_taken_for_a_shorter_one(tmp_path, compress):
    shard = tmp_path / "shard.tar"
    write_samples(shard, [np.array([i, i + 1]) for i in range(30)])
    whole = compress(shard.read_bytes())
    for length in range(0, len(whole), len(whole) // 40):
        shard.write_bytes(whole[:length])
        with refused(DataError, shard):
            list(islice(stream([str(shard)]), 30))
    shard.write_bytes(whole)
    assert len(list(islice(stream([str(shard)]), 30))) == 30


def test_what_is_not_there_or_does_not_fit_is_refused(tmp_path):
    with refused(DataError, "*.tar.gz", tmp_path):
        find_sequential_shards(str(tmp_path), "*.tar.gz")
    with refused(ConfigError, 8, 3):
        stream(["x"], micro_batch_size=3)


def test_a_command_may_begin_with_a_few_bytes(tmp_path):
    compressed(tmp_path, [30])
    whole = "shard-0.tar.gz"
    size = (tmp_path / whole).stat().st_size
    for name, length, fault in [("shard-0.tar", 10**6, None), (whole, size, None), (whole, size - 9, EOFError)]:
        shard = tmp_path / name
        command = f"pipe:head -c 1 {shard}; sleep 0.2; head -c {length} {shard} | tail -c +2"
        with nullcontext() if fault is None else pytest.raises(fault):
            assert [sample["__key__"] for sample in read_tar_stream(command)] == [f"{i:09d}" for i in range(30)]


def test_the_command_of_a_stream_that_is_left_is_ended(tmp_path, monkeypatch):
    compressed(tmp_path, [30])
    monkeypatch.setattr("nar_scale.data.loading.tar_stream.CLOSING_SECONDS", 0.1)
    samples = read_tar_stream(f"pipe:cat {tmp_path}/shard-0.tar; sleep 3; touch {tmp_path}/waited_for")
    assert next(samples)["__key__"] == "000000000"
    samples.close()
    assert not (tmp_path / "waited_for").exists()
