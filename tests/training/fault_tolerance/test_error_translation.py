import errno
import os

import pytest
import torch

from nar_scale.config import validate_config
from nar_scale.errors import DataError, UserError
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.fault_tolerance.error_translation import PeerLostError, translate_errors


@pytest.fixture
def translated():
    """What becomes of an error in a forward pass."""
    sections = {
        "model": {"dim": 32, "depth": 1, "heads": 2, "max_seq_len": 64, "activation_checkpointing": "full"},
        "objective": {"kind": "autoregressive"},
        "data": {"directory": "shards"},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "steps": 9,
            "global_batch_size": 8,
            "micro_batch_size": 1,
            "zero_stage": 3,
            "run_directory": "run",
        },
        "zero": {"offload_optimizer": "cpu"},
    }
    config, activity = validate_config(sections, "test"), Activity()
    activity.enter("forward pass")

    def raised(error):
        try:
            with translate_errors(activity, config, torch.device("cpu")):
                raise error
        except Exception as found:
            return found

    return raised


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory(translated, error):
    message = str(translated(error))
    assert message.startswith(
        "out of host memory in 'forward pass', with micro-batches of 1 x 64 tokens and a peak of "
    )
    # what has been done already is not proposed
    assert message.endswith("GiB; try model.logits_chunk_size below 67108864")


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "mount"), (errno.EACCES, "permissions")]
)
def test_disk(translated, number, remedy):
    error = translated(OSError(number, os.strerror(number), "run/samples/step-000000001.txt"))
    assert isinstance(error, UserError)
    assert str(error).startswith(f"run/samples/step-000000001.txt: {os.strerror(number)}; ")
    assert remedy in str(error)
    assert str(translated(OSError(number, os.strerror(number)))).startswith("run: ")


def test_a_lost_peer(translated):
    error = translated(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3456"))
    assert isinstance(error, PeerLostError)
    assert "lost in 'forward pass'" in str(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), DataError("no shard"), KeyError("x"), OSError("odd")])
def test_anything_else_is_left_alone(translated, error):
    assert translated(error) is error
