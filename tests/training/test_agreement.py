"""A few ranks, each a fork that takes itself for a node of its own."""

import os
import socket

import pytest
import torch
import torch.distributed as dist

from nar_scale.config import load_config
from nar_scale.errors import DataError, UserError
from nar_scale.training import agreement
from nar_scale.training.agreement import check_ranks_alike, check_shards_alike
from nar_scale.training.distributed import World
from tests.errors import assert_names

CONFIG = "configs/quickstart_nar.yaml"


def outcomes(directory, check, ranks=2):
    """What `check(world)` raises on each rank, as (name of the type, message); None where it raises nothing."""
    children = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            try:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
                dist.init_process_group(
                    "gloo", store=dist.FileStore(f"{directory}/store", ranks), rank=rank, world_size=ranks
                )
                socket.gethostname = lambda: f"node{rank}"  # noqa: B023
                control = dist.new_group(backend="gloo")
                text = ""
                try:
                    check(World(rank, 0, ranks, 1, torch.device("cpu"), control))
                except Exception as error:
                    text = f"{type(error).__name__}\n{error}"
                (directory / f"outcome-{rank}").write_text(text)
                dist.barrier()
                os._exit(0)
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * ranks
    texts = [(directory / f"outcome-{rank}").read_text() for rank in range(ranks)]
    return [tuple(text.split("\n", 1)) if text else None for text in texts]


def refusal(directory, check, error):
    """The message in which both ranks refuse."""
    first, second = outcomes(directory, check)
    assert first == second
    assert first is not None
    assert first[0] == error.__name__
    return first[1]


def test_ranks_that_are_alike(tmp_path):
    def check(world):
        # each node may keep these where it likes
        own = [f"data.cache_directory=/scratch/{world.rank}", f"data.index_directory=/scratch/{world.rank}/index"]
        check_ranks_alike(world, load_config(CONFIG, own))

    assert outcomes(tmp_path, check) == [None, None]


def test_settings_that_differ_are_named_with_the_host(tmp_path):
    def check(world):
        other = ["optimizer.learning_rate=0.5", "training.zero_stage=3"] if world.rank else []
        check_ranks_alike(world, load_config(CONFIG, other))

    message = refusal(tmp_path, check, UserError)
    assert_names(
        message,
        "rank 1 on node1 is not like rank 0 on node0",
        "optimizer.learning_rate 0.5",
        "training.zero_stage 3, not",
    )


@pytest.mark.parametrize("what", ["version", "code"])
def test_libraries_and_code_that_differ_are_named(tmp_path, what):
    def check(world):
        if world.rank and what == "version":
            agreement.version = lambda name: "0.1" if name == "deepspeed" else real(name)
        if world.rank and what == "code":
            (tmp_path / "nar_scale").mkdir()
            (tmp_path / "nar_scale" / "errors.py").write_text("class UserError(Exception): pass\n")
            agreement._PACKAGE = tmp_path / "nar_scale"
        check_ranks_alike(world, load_config(CONFIG))

    real = agreement.version
    message = refusal(tmp_path, check, UserError)
    named = "deepspeed 0.1, not" if what == "version" else "the code of nar_scale/__init__.py None, not"
    assert_names(message, "rank 1 on node1", named)


@pytest.mark.parametrize(("size", "named"), [(None, "missing"), (3, "of another size")])
def test_a_shard_that_one_node_lacks_is_named(tmp_path, size, named):
    shared, own = tmp_path / "shared", tmp_path / "own"
    for directory in (shared, own):
        directory.mkdir()
        for number in range(3):
            (directory / f"{number}.tar").write_bytes(b"whole")
    (own / "1.tar").unlink()
    if size:
        (own / "1.tar").write_bytes(bytes(size))

    def check(world):
        os.chdir(own if world.rank else shared)  # the same paths, to other files
        check_shards_alike(world, {f"{number}.tar": 5 for number in range(3)}, "corpus")

    place = "node1, where rank 1 runs, does not have the shards of corpus"
    assert_names(refusal(tmp_path, check, DataError), place, f"{named}: 1.tar")
