import math

import pytest
import torch

from nar_scale.errors import ConfigError
from nar_scale.masking import get_schedule
from nar_scale.masking.schedules import Schedule

from .helpers import SCHEDULES

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def counts_up_to(n):
    return torch.arange(1, n + 1), torch.tensor(n)


@every_schedule
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_count_probabilities_are_those_of_the_counts(schedule, n):
    schedule, grid = get_schedule(schedule), (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    probabilities = schedule.count_probability(*counts_up_to(n))
    drawn = schedule.masked_count(grid, torch.tensor(n)).bincount(minlength=n + 1).double() / len(grid)
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(drawn[1:], probabilities, rtol=0, atol=1.5e-4)
    assert drawn[0] == 0


@every_schedule
def test_counts_are_the_ceiling_of_the_masked_fraction(schedule):
    schedule, progress = get_schedule(schedule), torch.rand(500, dtype=torch.float64)
    lengths = torch.randint(1, 40, (500,))
    counts = schedule.masked_count(progress, lengths)
    expected = [math.ceil(m * n) for m, n in zip(schedule.masked_fraction(progress).tolist(), lengths.tolist())]
    assert counts.tolist() == expected
    assert ((counts >= 1) & (counts <= lengths)).all()


@every_schedule
def test_ends_of_the_schedule(schedule):
    ends, n = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor(9)
    assert get_schedule(schedule).masked_count(ends, n).tolist() == [9, 1]
    assert get_schedule(schedule).masked_count(ends, torch.tensor(0)).tolist() == [0, 0]


def test_named_fractions():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(get_schedule("linear").masked_fraction(t), 1 - t)
    torch.testing.assert_close(get_schedule("cosine").masked_fraction(t), torch.cos(math.pi * t / 2))
    bell = get_schedule("bell").masked_fraction(t)
    torch.testing.assert_close(3 * bell**2 - 2 * bell**3, 1 - t)  # the distribution function of Beta(2, 2)
    torch.testing.assert_close(get_schedule("bell").progress_at(bell), t)


@pytest.mark.parametrize("n", [1, 5, 1000])
def test_loss_weights(n):
    counts, length = counts_up_to(n)
    for name in ("linear", "uniform_count"):
        torch.testing.assert_close(
            get_schedule(name).loss_weight(counts, length), n / counts.double(), rtol=1e-9, atol=0
        )
    of_the_mean = get_schedule("cosine").loss_weight(counts, length) * counts / n
    assert of_the_mean.min() > 0
    assert of_the_mean.max() <= math.pi / 2 + 1e-9


def test_loss_weight_of_long_sequences_is_that_of_mdlm():
    """w(t) = -m'(t) / m(t), by hand: 1 / (1 - t) and (pi / 2) tan(pi t / 2)."""
    t, n = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), 10**6
    for name, weight in (("linear", 1 / (1 - t)), ("cosine", math.pi / 2 * torch.tan(math.pi * t / 2))):
        schedule = get_schedule(name)
        counts = schedule.masked_count(t, torch.tensor(n))
        torch.testing.assert_close(schedule.loss_weight(counts, torch.tensor(n)), weight, rtol=1e-4, atol=0)


@every_schedule
def test_the_hazard_is_the_slope_over_the_masked_fraction(schedule):
    schedule, step = get_schedule(schedule), 1e-6
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    slope = (schedule.masked_fraction(t + step) - schedule.masked_fraction(t - step)) / (2 * step)
    continuous_loss_weight = schedule.continuous_loss_weight(t)
    torch.testing.assert_close(continuous_loss_weight, -slope / schedule.masked_fraction(t), rtol=1e-6, atol=0)
    assert not continuous_loss_weight.requires_grad
    with torch.no_grad():
        assert torch.equal(
            schedule.continuous_loss_weight(t.float()), schedule.continuous_loss_weight(t.float().double())
        )


def test_named_hazards():
    t = torch.linspace(0, 0.9, 10, dtype=torch.float64)
    for name in ("linear", "uniform_count"):
        torch.testing.assert_close(get_schedule(name).continuous_loss_weight(t), 1 / (1 - t))
    torch.testing.assert_close(
        get_schedule("cosine").continuous_loss_weight(t), math.pi / 2 * torch.tan(math.pi * t / 2)
    )
    bell, m = get_schedule("bell"), get_schedule("bell").masked_fraction(t[1:])
    torch.testing.assert_close(bell.continuous_loss_weight(t[1:]), 1 / (6 * m**2 * (1 - m)))


def test_a_schedule_without_a_derivative_has_no_hazard():
    schedule = get_schedule(lambda t: torch.tensor((1 - t).tolist(), dtype=torch.float64))
    assert schedule.masked_count(torch.tensor(0.5), torch.tensor(4)) == 2
    with pytest.raises(ConfigError, match="not differentiable by torch; use masking 'exact'"):
        schedule.continuous_loss_weight(torch.tensor([0.5]))


def test_bisection_equals_the_analytic_inverse():
    analytic, bisected = get_schedule("cosine"), get_schedule(lambda t: torch.cos(math.pi * t / 2))
    fractions = torch.cat((torch.linspace(0, 0.999, 500, dtype=torch.float64), torch.ones(1, dtype=torch.float64)))
    torch.testing.assert_close(bisected.progress_at(fractions), analytic.progress_at(fractions), rtol=0, atol=1e-13)
    weights = [schedule.loss_weight(*counts_up_to(50)) for schedule in (analytic, bisected)]
    torch.testing.assert_close(*weights, rtol=1e-10, atol=0)


def test_a_schedule_is_passed_through():
    schedule = Schedule(lambda t: 1 - t)
    assert get_schedule(schedule) is schedule


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("sigmoid", "unknown schedule 'sigmoid'.*'linear', 'cosine', 'uniform_count', 'bell'"),
        (lambda t: t, "must fall from masked fraction 1 .* goes from 0 to 1"),
        (lambda t: 1 - t / 2, "goes from 1 to 0.5"),
        (lambda t: 1 - t + 0.3 * torch.sin(2 * math.pi * t) * t, "rises in between"),
        (lambda t: (1 - t) * math.nan, "must fall"),
    ],
)
def test_invalid_schedules_are_refused(schedule, message):
    with pytest.raises(ConfigError, match=message):
        get_schedule(schedule)
