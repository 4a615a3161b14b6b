"""Pieces of parameters: whichever ranks wrote them, any range can be read."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from nar_scale.checkpoint import WEIGHT, Partition, PartitionReader, partition_file, write_partitions
from nar_scale.checkpoint.tensor_file import write_tensors
from nar_scale.errors import CheckpointError
from tests.errors import refused

SHAPES = {"net.a": (3, 4), "net.b": (7,), "c": ()}
WHOLE = {name: torch.randn(shape) for name, shape in SHAPES.items()}


def cut(rank, ranks, weights=WHOLE):
    """Equal parts of each flattened parameter, as ZeRO 3 makes them; the last may be short or empty."""
    parts = []
    for name, weight in weights.items():
        size = -(-weight.numel() // ranks)
        elements = weight.flatten()[rank * size : (rank + 1) * size]
        tensors = {WEIGHT: elements, "exp_avg": elements.to(torch.bfloat16)}
        if len(elements):
            parts.append(Partition(name, tuple(weight.shape), rank * size, tensors, {"step": 12.0}))
    return parts


def write(directory, ranks):
    for rank in range(ranks):
        write_partitions(directory / partition_file(rank), lambda rank=rank: cut(rank, ranks))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_any_range_of_what_any_number_of_ranks_wrote(tmp_path, ranks):
    write(tmp_path, ranks)
    with PartitionReader(tmp_path) as reader:
        assert reader.shapes == SHAPES
        for name, weight in WHOLE.items():
            assert reader.kinds[name] == {WEIGHT, "exp_avg"}
            assert reader.scalars[name] == {"step": 12.0}
            assert torch.equal(reader.whole(WEIGHT, name), weight)
            assert torch.equal(reader.whole("exp_avg", name), weight.to(torch.bfloat16))
            for start in range(weight.numel()):
                for stop in range(start + 1, weight.numel() + 1):
                    assert torch.equal(reader.read(WEIGHT, name, start, stop), weight.flatten()[start:stop])


def test_what_nobody_wrote_is_named(tmp_path):
    write(tmp_path, 3)
    (tmp_path / partition_file(1)).unlink()
    with PartitionReader(tmp_path) as reader:
        assert torch.equal(reader.read(WEIGHT, "net.a", 0, 4), WHOLE["net.a"].flatten()[:4])
        with refused(CheckpointError, "weight", "net.a", "element 4"):
            reader.whole(WEIGHT, "net.a")
        with refused(CheckpointError, "ema", "net.a", "element 0"):
            reader.whole("ema", "net.a")
        with refused(CheckpointError, "weight", "other"):
            reader.read(WEIGHT, "other")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100])
def test_a_file_that_is_none_is_named(tmp_path, content):
    write(tmp_path, 2)
    (tmp_path / partition_file(1)).write_bytes(content)
    with refused(CheckpointError, tmp_path / partition_file(1)):
        PartitionReader(tmp_path)


def test_a_checkpoint_of_another_kind_says_so(tmp_path):
    with refused(CheckpointError, tmp_path, "version"):
        PartitionReader(tmp_path)


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64]),
)
def test_the_library_reads_what_was_written_one_by_one(tmp_path_factory, shapes, dtype):
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    tensors = {f"name {number}": torch.randn(shape).to(dtype) for number, shape in enumerate(shapes)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(path, layout, iter(tensors.values()), {"a": json.dumps([1])})
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_that_is_not_what_was_said_is_refused(tmp_path):
    layout = {"a": (torch.float32, (2,))}
    with refused(ValueError, "a", "torch.float32 [3]", "torch.float32 [2]"):
        write_tensors(tmp_path / "x", layout, [torch.zeros(3)], {})
    with pytest.raises(ValueError, match=r"shorter|longer"):  # of zip(strict=True)
        write_tensors(tmp_path / "x", layout, [], {})


def test_transposed_and_expanded_tensors_are_written_as_they_look(tmp_path):
    tensors = {"t": torch.arange(6.0).view(2, 3).t(), "e": torch.ones(1).expand(4)}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(tmp_path / "x", layout, tensors.values(), {})
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
