"""Each fault is named, or skipped in its place: all other samples stay where they are."""

import os
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
import webdataset

from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, TokenStream, sequential_batches
from nar_scale.errors import DataError
from tests.data.shard_files import npy
from tests.errors import refused

SAMPLES, BAD = 24, 13
FORMAT = SampleFormat(4, 100, class_field="cls", num_classes=10, document_field="documents.npy")


def members(sample):
    return {
        "tokens.npy": npy(np.array([sample, sample + 1, 2], dtype=np.uint16)),
        "cls": str(sample % 10).encode(),
        "documents.npy": npy(np.array([0, 0, 1], dtype=np.uint8)),
    }


def write(directory, **bad):
    """Two shards; in the second, sample 13 has other members (None for one it lacks)."""
    directory.mkdir(exist_ok=True)
    for shard in range(2):
        with webdataset.TarWriter(str(directory / f"shard-{shard}.tar"), encoder=False) as writer:
            for sample in range(shard * SAMPLES // 2, (shard + 1) * SAMPLES // 2):
                content = members(sample)
                if sample == BAD:
                    content.update({name.replace("_", "."): value for name, value in bad.items()})
                    content = {name: value for name, value in content.items() if value is not None}
                writer.write({"__key__": f"{sample:03d}", **content})


def stream(directory, skip_faults=False, workers=0, **settings):
    index = DatasetIndex.open(directory, "*.tar", FORMAT.fields, progress=False, skip_faults=skip_faults, **settings)
    order = SampleOrder(index.counts, 0, 2)
    shape = {"global_batch_size": 8, "micro_batch_size": 4, "rank": 0, "world_size": 1}
    return TokenStream(index, order, FORMAT, **shape, workers=workers, skip_faults=skip_faults)


def epoch(batches):
    return list(islice(batches, SAMPLES // 4))


FAULTS = {
    "not an array": ({"tokens_npy": b"hello"}, ("'tokens.npy'", "not a .npy file")),
    "pickled": ({"tokens_npy": npy(np.array([{}], dtype=object), allow_pickle=True)}, ("'tokens.npy'", "pickled")),
    "a pickle": ({"tokens_npy": pickle.dumps([1, 2])}, ("'tokens.npy'", "not a .npy file")),
    "cut": ({"tokens_npy": npy([1, 2, 3])[:-1]}, ("'tokens.npy'", "ends in the middle")),
    "unknown version": ({"tokens_npy": b"\x93NUMPY\x09\x00\x00\x00"}, ("'tokens.npy'", 9)),
    "floats": ({"tokens_npy": npy([1.0, 2.0, 3.0])}, ("float64",)),
    "outside": ({"tokens_npy": npy([1, 100, 2])}, ("token 100", 100)),
    "negative": ({"tokens_npy": npy([1, -1, 2])}, ("token -1", 100)),
    "too long": ({"tokens_npy": npy([1] * 5)}, (5, 4)),
    "empty": ({"tokens_npy": npy(np.zeros(0, dtype=np.int64))}, ("no token",)),
    "matrix": ({"tokens_npy": npy([[1, 2], [3, 4]])}, ("(2, 2)",)),
    "no class": ({"cls": b"cat"}, ("'cls'",)),
    "another class": ({"cls": b"10"}, (10, "0..9")),
    "documents too few": ({"documents_npy": npy([0, 1])}, ("'documents.npy'", 2, 3)),
    "documents that fall": ({"documents_npy": npy([1, 0, 1])}, ("'documents.npy'",)),
    "missing field": ({"documents_npy": None}, ("'documents.npy'", "cls", "tokens.npy")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(tmp_path, fault):
    bad, named = FAULTS[fault]
    write(tmp_path / "bad", **bad)
    with refused(DataError, tmp_path / "bad" / "shard-1.tar", "sample 013", *named):
        epoch(stream(tmp_path / "bad"))


@pytest.mark.parametrize(("fault", "workers"), [*((fault, 0) for fault in FAULTS), ("cut", 2), ("missing field", 2)])
def test_a_fault_that_is_skipped_leaves_all_others_in_place(tmp_path, fault, workers):
    bad, _ = FAULTS[fault]
    write(tmp_path / "good")
    write(tmp_path / "bad", **bad)
    seen = epoch(stream(tmp_path / "bad", skip_faults=True, workers=workers))
    for batch, good in zip(seen, epoch(stream(tmp_path / "good"))):
        skipped = good.sample_ids == BAD
        for name in ("positions", "epochs", "sample_ids"):
            assert torch.equal(getattr(batch, name), getattr(good, name))
        for name in ("tokens", "lengths", "classes", "documents"):
            assert torch.equal(getattr(batch, name)[~skipped], getattr(good, name)[~skipped])
            assert not getattr(batch, name)[skipped].any()
        assert len(batch.faults) == int(skipped.sum())
    (told,) = [line for batch in seen for line in batch.faults]
    assert "shard-1.tar, sample 013: " in told
    assert "\n" not in told


def test_evaluation_skips_in_place_too(tmp_path):
    write(tmp_path / "bad", cls=b"cat")
    index = DatasetIndex.open(tmp_path / "bad", "*.tar", progress=False)
    batches = list(sequential_batches(index, FORMAT, batch_size=5, rank=0, world_size=1, skip_faults=True))
    assert torch.cat([batch.lengths for batch in batches]).tolist() == [0 if i == BAD else 3 for i in range(SAMPLES)]


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.7])
def test_what_is_whole_of_a_truncated_shard_is_taken_when_faults_are_skipped(tmp_path, kept):
    write(tmp_path / "data")
    shard = tmp_path / "data" / "shard-1.tar"
    whole = shard.read_bytes()
    os.truncate(shard, int(len(whole) * kept))
    with refused(DataError, shard):
        stream(tmp_path / "data")
    index = DatasetIndex.open(tmp_path / "data", "*.tar", FORMAT.fields, progress=False, skip_faults=True)
    assert SAMPLES // 2 < index.num_samples < SAMPLES
    assert len(index.damages) == 1
    with refused(DataError, shard):  # not forgotten because it was skipped once
        stream(tmp_path / "data")
    shard.write_bytes(whole)  # the remedy: no index to delete by hand
    assert len(epoch(stream(tmp_path / "data"))) == SAMPLES // 4


@pytest.mark.parametrize("memory_map", [True, False])
@pytest.mark.parametrize("harm", ["removed", "cut", "replaced"])
def test_a_shard_harmed_while_it_is_in_use_is_named_or_skipped(tmp_path, harm, memory_map):
    for skip_faults in (False, True):
        write(tmp_path / "data")
        batches = stream(tmp_path / "data", skip_faults, memory_map=memory_map)
        shard = tmp_path / "data" / "shard-1.tar"
        content = shard.read_bytes()
        if harm == "removed":
            shard.unlink()
        elif harm == "cut":
            shard.write_bytes(content[: len(content) // 3])
        else:
            shard.write_bytes(content + bytes(512))
        if not skip_faults:
            with refused(DataError, shard):
                epoch(batches)
        else:
            seen = epoch(batches)
            faults = [fault for batch in seen for fault in batch.faults]
            assert len(faults) == SAMPLES // 2
            assert all("shard-1.tar" in fault for fault in faults)
        shard.write_bytes(content)
        for index in (tmp_path / "data").glob("*.index"):
            index.unlink()
