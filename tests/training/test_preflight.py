import os
import time
from dataclasses import replace

import pytest
import torch.distributed as dist

from nar_scale.config import DataConfig
from nar_scale.errors import UserError
from nar_scale.logging_setup import set_up_logging
from nar_scale.training import preflight
from nar_scale.training.preflight import (
    NodeReport,
    check_nodes,
    describe_nodes,
    outliers,
    rounds_of_neighbours,
    short_of_cache,
    unlike,
)
from tests.errors import assert_names

from .test_agreement import outcomes, refusal

ALIKE = [NodeReport(f"n{n}", 8 * n, "8 x H100", 0.010, (0.02, 0.02), 0.04, 100.0, 50.0) for n in range(4)]
DATA = DataConfig(directory="corpus")


def test_nodes_that_are_alike(tmp_path):
    cache = tmp_path / "cache" / "of this node"  # not made yet

    def check(world):
        reports = check_nodes(world, tmp_path, DATA.model_copy(update={"cache_directory": cache}))
        assert [report.devices for report in reports] == ["1 x cpu"] * 2
        assert all(report.free_cache_gib == pytest.approx(report.free_space_gib, abs=1) for report in reports)
        assert [report.host for report in reports] == ["node0", "node1"]
        assert all(report.product_seconds > 0 and len(report.neighbour_seconds) == 1 for report in reports)
        assert all(report.all_reduce_seconds > 0 for report in reports)
        assert all(report.free_memory_gib > 0 and report.free_space_gib > 0 for report in reports)

    assert outcomes(tmp_path, check) == [None, None]
    assert not list(tmp_path.glob(".preflight-*"))


def test_a_node_with_a_run_directory_of_its_own_is_named(tmp_path):
    def check(world):
        preflight._NONCE_SECONDS = 0.5
        own = tmp_path / str(world.rank)
        own.mkdir()
        os.chdir(own)
        check_nodes(world, own, DATA)

    place = "node1 does not see what rank 0 on node0 has written to the run directory"
    assert_names(refusal(tmp_path, check, UserError), place, "training.run_directory")


def test_slow_nodes_are_named():
    assert outliers(ALIKE) == []
    (line,) = outliers([*ALIKE, replace(ALIKE[0], host="n9", product_seconds=0.05)])
    assert_names(line, "n9 is slow: a matrix product", "50.0 ms", "5.0 times", "--exclude=n9")
    # 8 MiB in 20 ms between two ranks; each of 32 ranks sends and receives 31/32 of them twice in 40 ms
    line = describe_nodes([*ALIKE[:3], replace(ALIKE[3], free_memory_gib=7.0)], 32)
    assert_names(line, "4 nodes", "10.0 to 10.0 ms", "0.42 to 0.42 GB/s", "40.0 ms (0.41 GB/s) over 32 ranks")
    assert_names(line, "free memory is at least 7.0 GiB (on n3)")


def test_a_node_with_other_devices_is_named():
    assert unlike(ALIKE) == []
    (line,) = unlike([ALIKE[0], replace(ALIKE[1], devices="8 x A100"), *ALIKE[2:]])
    assert_names(line, "n1 has 8 x A100", "most nodes have 8 x H100", "--exclude=n1")
    (line,) = unlike([*ALIKE, replace(ALIKE[0], host="n9", devices="4 x H100")])
    assert_names(line, "n9 has 4 x H100")


def test_a_disk_without_room_for_the_copies_of_shards_is_named():
    assert short_of_cache(ALIKE, 100.0) == []
    with_cache = [replace(report, free_cache_gib=200.0 - 60 * n) for n, report in enumerate(ALIKE)]
    (line,) = short_of_cache(with_cache, 60.0)
    assert_names(line, "n3", "20.0 GiB for data.cache_directory", "data.cache_gib (60)")


def test_copies_that_are_there_need_no_more_room(tmp_path):
    def check(world):
        with open(tmp_path / "shard.tar", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 64 * 2**20)
        reports = check_nodes(world, tmp_path, DATA.model_copy(update={"cache_directory": tmp_path}))
        assert all(report.free_cache_gib > report.free_space_gib + 0.05 for report in reports)

    assert outcomes(tmp_path, check) == [None, None]


@pytest.mark.parametrize(("nodes", "rounds"), [(2, 1), (3, 3), (4, 2), (5, 3), (8, 2)])
def test_each_node_is_measured_with_its_neighbours(nodes, rounds):
    pairs = [each for each in rounds_of_neighbours(nodes) if each]
    assert len(pairs) == rounds
    for each in pairs:
        assert len({place for pair in each for place in pair}) == 2 * len(each)
    ring = {frozenset((place, (place + 1) % nodes)) for place in range(nodes)}
    assert {frozenset(pair) for each in pairs for pair in each} == ring
    assert sum(map(len, pairs)) == len(ring)


def test_a_node_that_holds_up_the_all_reduce_is_named(tmp_path, capfd):
    def check(world):
        set_up_logging()
        preflight._MESSAGE_BYTES = 4096
        if world.rank == 1:
            dist.all_reduce = delayed
        reports = check_nodes(world, tmp_path, DATA)
        assert all(report.all_reduce_seconds > 1.0 for report in reports)

    def delayed(message, group=None):
        time.sleep(1.0)
        return real(message, group=group)

    real = dist.all_reduce
    assert outcomes(tmp_path, check, ranks=3) == [None] * 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "an all-reduce with either neighbour" in line]
    assert "node1 is slow: " in line
    assert "sbatch --exclude=node1" in line
