"""The boundary without a running engine, around DeepSpeed's own loss scalers; with one: tests/distributed."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaleConfig

from nar_scale.training.engine.zero_engine import ZeroEngine
from tests.config.helpers import config_with

CONFIG = config_with(
    **{"optimizer.kind": "muon", "optimizer.learning_rate": 0.5, "optimizer.muon_learning_rate": 0.25}
).optimizer
ARGUMENTS = {"init_scale": 2**8, "scale_window": 100, "min_scale": 1, "delayed_shift": 2}


def engine_with(optimizer, fp16=True):
    return ZeroEngine(SimpleNamespace(optimizer=optimizer, fp16_enabled=lambda: fp16), CONFIG)


def of_zero():
    return SimpleNamespace(loss_scaler=DynamicLossScaler(**ARGUMENTS, consecutive_hysteresis=False))


def of_stage_0():
    return SimpleNamespace(loss_scale_config=LossScaleConfig(torch.float16, True, None, None))


@pytest.mark.parametrize(("make", "name"), [(of_zero, "loss_scaler"), (of_stage_0, "loss_scale_config")])
def test_the_state_of_the_loss_scale_is_restored(make, name):
    optimizers = make(), make()
    scaler, other = (getattr(optimizer, name) for optimizer in optimizers)
    scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = 16.0, 7, 5
    saved = engine_with(optimizers[0]).loss_scale
    assert saved.items() >= {"cur_scale": 16.0, "cur_iter": 7, "last_overflow_iter": 5}.items()
    engine_with(optimizers[1]).restore_loss_scale(saved)
    assert vars(other) == vars(scaler)


@pytest.mark.parametrize(("make", "name"), [(of_zero, "loss_scaler"), (of_stage_0, "loss_scale_config")])
def test_the_loss_scale_is_exhausted_at_its_least(make, name):
    optimizer = make()
    assert not engine_with(optimizer).loss_scale_is_exhausted
    getattr(optimizer, name).cur_scale = 1.0
    assert engine_with(optimizer).loss_scale_is_exhausted


def test_other_precisions_have_no_loss_scale():
    engine = engine_with(of_zero(), fp16=False)
    assert engine.loss_scale == {}
    assert engine.loss_scale_is_exhausted


def test_constructing_changes_nothing_and_skipping_has_a_call():
    weight = torch.ones(2, requires_grad=True)
    torchs, scaled = torch.optim.AdamW([weight]), of_zero()
    engines = engine_with(torchs), engine_with(scaled)
    assert scaled.loss_scaler.raise_error_at_min_scale
    weight.grad = torch.tensor([1.0, float("inf")])
    for engine in engines:
        engine.skip_non_finite_steps()
    assert not scaled.loss_scaler.raise_error_at_min_scale
    torchs.step()
    assert torch.equal(weight.detach(), torch.ones(2))
    assert not torchs.state


def test_each_group_has_a_factor_of_its_own_learning_rate():
    groups = [{"params": [torch.ones(1, requires_grad=True)], "use_muon": muon} for muon in (False, True)]
    engine = engine_with(torch.optim.AdamW(groups, weight_decay=0.125))
    engine.set_learning_rates(0.5)
    assert engine.learning_rates == (0.25, 0.125)
    assert (engine.muon_settings.learning_rate, engine.muon_settings.weight_decay) == (0.125, 0.125)


def test_observers_see_the_weights_before_and_after_a_step():
    weight, seen = torch.ones(2, requires_grad=True), []
    optimizer = torch.optim.SGD([weight], lr=0.5)
    observe = lambda weights: seen.append(weights[0].detach().clone())  # noqa: E731
    engine_with(SimpleNamespace(optimizer=optimizer)).observe_optimizer(observe, observe)  # as ZeRO wraps it
    weight.grad = torch.ones(2)
    optimizer.step()
    assert [values.tolist() for values in seen] == [[1.0, 1.0], [0.5, 0.5]]
