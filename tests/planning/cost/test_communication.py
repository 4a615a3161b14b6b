"""What is sent, and how long it takes, against arithmetic by hand."""

import pytest

from nar_scale.config import resolve_deepspeed_config
from nar_scale.planning.cost.communication import Collective, Interconnect, collectives_of_step
from nar_scale.planning.cost.devices import DEVICES
from nar_scale.planning.cost.partitions import ParameterSizes
from tests.config.helpers import config_with

SIZES = ParameterSizes(((1000, 3001), (50,)), (2, 2))
TOTAL = 4051


def sent(stage, accumulation=3, ranks=4, **changes):
    """Bytes that a rank sends by collective."""
    config = config_with(**{"training.zero_stage": stage, "training.micro_batch_size": 1, **changes})
    found = collectives_of_step(SIZES, config, resolve_deepspeed_config(config, ranks), ranks, accumulation)
    return {each.name: each.sent(ranks) for each in found}


def test_bytes_that_a_rank_sends():
    half, part = 2, 3 / 4  # bytes of bfloat16; three of four parts of a ring
    padded = 4008 + 56  # each group to a multiple of 8
    assert sent(0) == {"gradients": 2 * TOTAL * half * part}
    assert sent(1) == {"gradients": 2 * TOTAL * half * part, "weights": padded * half * part}
    assert sent(2) == {"gradients": 3 * 2 * TOTAL * half * part, "weights": padded * half * part}
    # all are small here, and stay whole
    assert sent(3) == {"gradients": 3 * TOTAL * half * part, "small weights": TOTAL * half * part}


def test_zero_3_gathers_large_weights_once_or_twice():
    large = {"deepspeed.zero_optimization.stage3_param_persistence_threshold": 100}
    kept = sent(3, **large)
    assert kept["weights, forward"] == 3 * 4001 * 2 * 3 / 4
    assert "weights, backward" not in kept  # they fit into stage3_max_reuse_distance
    released = {
        "deepspeed.zero_optimization.stage3_max_reuse_distance": 2000,
        "deepspeed.zero_optimization.stage3_prefetch_bucket_size": 0,
    }
    assert sent(3, **large, **released)["weights, backward"] == 3 * 3001 * 2 * 3 / 4


def test_one_rank_sends_nothing_and_waits_for_nothing():
    assert set(sent(2, ranks=1).values()) == {0}
    alone = Interconnect.of(DEVICES["h100"], 1, 1)
    assert alone.seconds(Collective("any", "all-reduce", "after", 1e9, 1, 1)) == 0


@pytest.mark.parametrize(("nodes", "bandwidth"), [(1, 450e9), (2, 8 * 50e9), (8, 8 * 50e9)])
def test_large_tensors_take_the_slowest_link(nodes, bandwidth):
    links = Interconnect.of(DEVICES["h100"], 8 * nodes, nodes)
    gather = Collective("any", "all-gather", "after", 100e9, 1, 1)
    ring = (8 * nodes - 1) / (8 * nodes)
    assert links.seconds(gather) == pytest.approx(100e9 * ring / (0.8 * bandwidth), rel=0.01)


def test_many_ranks_wait_for_many_hops():
    small = Collective("any", "all-gather", "after", 1e3, 1, 1)
    times = [Interconnect.of(DEVICES["h100"], 8 * nodes, nodes).seconds(small) for nodes in (1, 16, 256, 2048)]
    assert times == sorted(times)
    assert times[-1] > 100 * times[1]


def test_a_collective_within_a_node_does_not_use_the_network():
    slow = Interconnect(16, 2, link_bandwidth=400e9, network_bandwidth=1e9)
    within = Collective("any", "all-gather", "after", 1e9, 1, 1, within_node=True)
    assert slow.seconds(within) < slow.seconds(Collective("any", "all-gather", "after", 1e9, 1, 1)) / 10
