"""What a report makes of the position and of the optimizer."""

from types import SimpleNamespace

import pytest

from nar_scale.training.callbacks.metrics_reporter import _consumption, _learning_rates


def test_learning_rates_of_groups_are_told_apart_where_they_differ():
    assert _learning_rates((0.1, 0.1)) == {"learning_rate": 0.1}
    assert _learning_rates((0.1, 0.2)) == {
        "learning_rate": 0.1,
        "learning_rate_0": 0.1,
        "learning_rate_1": 0.2,
    }


@pytest.mark.parametrize(
    ("sources", "consumed", "expected"),
    [
        ({"": 200}, {}, {"epoch": 1.5}),
        ({}, {}, {}),  # a sequential stream does not know its length
        (
            {"prose": 100, "code": 400},
            {"prose": 200, "code": 100},
            {"samples_of_prose": 200, "epochs_of_prose": 2.0, "samples_of_code": 100, "epochs_of_code": 0.25},
        ),
    ],
)
def test_epochs(sources, consumed, expected):
    state = SimpleNamespace(samples=300, source_samples=consumed)
    indexes = {name: SimpleNamespace(num_samples=size) for name, size in sources.items()}
    assert _consumption(state, indexes) == expected
