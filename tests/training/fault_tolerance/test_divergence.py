import math
from functools import partial

import pytest
import torch

from nar_scale.training.engine.nonfinite import all_finite, drop_non_finite_gradients, with_non_finite_gradient
from nar_scale.training.fault_tolerance.loss_spikes import SpikeDetector
from nar_scale.training.optimizers.ema import averaging
from nar_scale.training.optimizers.lion import Lion

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not_finite(bad):
    weight = torch.ones(3, requires_grad=True)
    loss = weight.sum() + bad  # whose own gradient is finite
    with_non_finite_gradient(loss).backward()
    assert weight.grad.isnan().all()


def test_a_finite_loss_is_left_as_it_is():
    weight = torch.tensor([0.1, 0.7], requires_grad=True)
    loss = (weight * weight).sum()
    same = with_non_finite_gradient(loss)
    assert torch.equal(same, loss)
    (gradient,) = torch.autograd.grad(same, weight)
    assert torch.equal(gradient, 2 * weight)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, partial(averaging(torch.optim.AdamW), decay=0.9), partial(averaging(Lion), decay=0.9)]
)
def test_an_optimizer_passes_over_a_gradient_that_is_not_finite(kind, bad):
    weights = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = kind([{"params": [weight]} for weight in weights], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    optimizer.register_step_pre_hook(drop_non_finite_gradients)

    def step(value):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        weights[1].grad[2] = value
        optimizer.step()
        state = {(id(w), name): value.clone() for w in weights for name, value in optimizer.state.get(w, {}).items()}
        return optimizer.overflow, [weight.detach().clone() for weight in weights], state

    overflows, all_weights, states = zip(*map(step, (bad, 1.0, bad, bad, 1.0)))
    assert overflows == (True, False, True, True, False)
    assert states[0] == {}
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in all_weights[0])
    for later in (2, 3):
        assert all(map(torch.equal, all_weights[1], all_weights[later]))
        assert states[1].keys() == states[later].keys()
        assert all(torch.equal(states[1][key], states[later][key]) for key in states[1])
    assert not torch.equal(all_weights[3][0], all_weights[4][0])
    assert all_finite(list(states[4].values()))


def test_spikes():
    detector = SpikeDetector(sigma=6.0, window=8)
    losses = [3.0, 3.1, 2.9, 3.0, 3.1, 2.9, 3.0, 3.1, 3.2, NAN, 2.5, 5.0, 5.0, 3.0]
    scores = [detector.score(loss) for loss in losses]
    assert [step for step, score in enumerate(scores) if score is not None] == [11]
    assert 6 < scores[11] < 20


def test_nothing_is_a_spike_before_the_window_is_full_or_without_sigma():
    assert [SpikeDetector(6.0, 8).score(loss) for loss in (1.0, 1.0, 100.0)] == [None] * 3
    detector = SpikeDetector(0.0, 8)
    assert [detector.score(loss) for loss in [1.0] * 9 + [1e9]] == [None] * 10


def test_losses_that_hardly_differ_are_no_measure_of_a_spike():
    detector = SpikeDetector(6.0, 8)
    assert [detector.score(1.0 + 1e-9 * (step % 2)) for step in range(9)] == [None] * 9
    assert detector.score(1.001) is None
    assert math.isclose(detector.score(1.1), 100, rel_tol=0.1)
