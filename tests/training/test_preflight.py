import os
from dataclasses import replace

from nar_scale.errors import UserError
from nar_scale.training import preflight
from nar_scale.training.preflight import NodeReport, check_nodes, describe_nodes, outliers
from tests.errors import assert_names

from .test_agreement import outcomes, refusal

ALIKE = [NodeReport(f"n{n}", 8 * n, 0.010, (0.02, 0.02), 0.04, 100.0, 50.0) for n in range(4)]


def test_nodes_that_are_alike(tmp_path, capfd):
    def check(world):
        reports = check_nodes(world, tmp_path)
        assert [report.host for report in reports] == ["node0", "node1"]
        assert all(report.product_seconds > 0 and len(report.link_seconds) == 1 for report in reports)
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
        check_nodes(world, own)

    place = "node1 does not see what rank 0 on node0 has written to the run directory"
    assert_names(refusal(tmp_path, check, UserError), place, "training.run_directory")


def test_slow_nodes_are_named():
    assert outliers(ALIKE) == []
    (line,) = outliers([*ALIKE, replace(ALIKE[0], host="n9", product_seconds=0.05)])
    assert_names(line, "n9 is slow: a matrix product", "50.0 ms", "5.0 times", "--exclude=n9")
    # a neighbour of a slow node has another link
    reports = [ALIKE[0], replace(ALIKE[1], link_seconds=(0.02, 0.2)), replace(ALIKE[2], link_seconds=(0.2, 0.2))]
    (line,) = outliers([*reports, replace(ALIKE[3], link_seconds=(0.2, 0.02))])
    assert_names(line, "n2 is slow", "200.0 ms")
    # 8 MiB both ways in 20 ms; of an all-reduce of 32 ranks each sends and receives 31/32 of them twice in 40 ms
    line = describe_nodes(ALIKE, 32)
    assert_names(line, "4 nodes", "10.0 to 10.0 ms", "0.42 to 0.42 GB/s", "32 ranks takes 40.0 ms (0.41 GB/s)")
