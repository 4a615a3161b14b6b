import torch

from nar_scale.training.metrics.stragglers import OwnTime, StragglerDetector


def test_own_time_adds_up(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr("nar_scale.training.metrics.stragglers.time.perf_counter", lambda: next(now))
    own = OwnTime(torch.device("cpu"))
    with own.of_host():
        pass
    with own.of_device():
        pass
    assert own.take() == 1.5
    with own.of_device():
        pass
    assert own.take() == 0.25


def test_a_rank_that_stays_slow_is_named_once():
    stragglers = StragglerDetector(1.5)
    slow, fine = [1.0, 1.1, 3.0, 1.0], [1.0, 1.1, 1.2, 1.0]
    seen = [stragglers.update(seconds) for seconds in (slow, slow, fine, slow, slow, slow, slow)]
    assert seen[0][0] == {"slowest_rank": 2, "slowest_rank_ratio": 3.0 / 1.05}
    assert [line is not None for _, line in seen] == [False, False, False, False, False, True, False]
    assert "rank 2 is slow: for 3 reports its own work has taken 2.9 times the median" in seen[5][1]


def test_ranks_that_are_slow_in_turns_are_not_named():
    stragglers = StragglerDetector(1.5)
    turns = [[3.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 3.0]] * 2
    assert [stragglers.update(seconds)[1] for seconds in turns] == [None] * 6


def test_a_rank_alone_is_not_compared():
    assert StragglerDetector(1.5).update([1.0]) == ({}, None)
