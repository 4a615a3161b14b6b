import mmap

import pytest
import torch

from nar_scale import Encoder, TransformerWrapper
from nar_scale.planning.flops import flops_per_token, peak_flops
from nar_scale.training.metrics.throughput import Stopwatch, memory_usage, timed


@pytest.mark.parametrize("tied", [False, True])
def test_flops_by_hand(tied):
    layers = Encoder(dim=8, depth=2, heads=2, dim_head=6, feedforward="gelu", feedforward_mult=2, rotary=False)
    net = TransformerWrapper(num_tokens=10, max_seq_len=16, attn_layers=layers, tie_embedding=tied)
    matrices = 2 * (4 * 8 * 12 + 2 * 8 * 16) + 8 * 10  # attention, feed-forward, output
    norms = 5 * 8
    assert flops_per_token(net) == 6 * (matrices + norms) + 12 * 2 * 12 * 16


def test_a_cpu_has_no_known_peak_but_memory():
    assert peak_flops(torch.device("cpu")) is None
    used = memory_usage(torch.device("cpu"))
    assert 0.01 < used["memory_now_gib"] <= used["memory_gib"] < 1000


def test_memory_of_the_host_is_that_of_this_process():
    device = torch.device("cpu")
    before = memory_usage(device)["memory_now_gib"]
    with mmap.mmap(-1, 2**28) as block:  # a tensor may lie in memory that the process had already
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert memory_usage(device)["memory_now_gib"] - before == pytest.approx(0.25, abs=0.05)
    after = memory_usage(device)
    assert after["memory_gib"] - after["memory_now_gib"] > 0.2


def test_timings_add_up(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("nar_scale.training.metrics.throughput.time.perf_counter", lambda: next(now))
    timings = {}
    for _ in range(2):
        with timed(timings, "checkpoint_seconds"):
            pass
    assert timings == {"checkpoint_seconds": 5.0}


def test_stopwatch(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 4.0, 6.0, 10.0, 20.0])
    monkeypatch.setattr("nar_scale.training.metrics.throughput.time.perf_counter", lambda: next(now))
    stopwatch = Stopwatch()
    with stopwatch.waiting():
        pass
    with stopwatch.excluded():
        pass
    assert stopwatch.lap() == (8.0, 0.25)
    assert stopwatch.lap() == (10.0, 0.0)
