from types import SimpleNamespace

import pytest
import torch

from nar_scale import Decoder, TransformerWrapper
from nar_scale.config import (
    AdamWConfig,
    ConstantScheduleConfig,
    CosineScheduleConfig,
    InverseSqrtScheduleConfig,
    LionConfig,
    MuonConfig,
    WSDScheduleConfig,
)
from nar_scale.errors import UserError
from nar_scale.model.parameters import muon_matrices
from nar_scale.training.callbacks.muon_check import MuonCheck
from nar_scale.training.engine.zero_engine import ZeroEngine
from nar_scale.training.optimizers.build import build_optimizer, parameter_groups
from nar_scale.training.optimizers.ema import EMA
from nar_scale.training.optimizers.learning_rate import learning_rate_factor
from nar_scale.training.optimizers.muon import muon_step

STEPS = 100
SCHEDULES = {
    "cosine": CosineScheduleConfig,
    "wsd": WSDScheduleConfig,
    "constant": ConstantScheduleConfig,
    "inverse_sqrt": InverseSqrtScheduleConfig,
}
OPTIMIZERS = {"adamw": AdamWConfig, "lion": LionConfig, "muon": MuonConfig}


def schedule_of(kind, **settings):
    return SCHEDULES[kind](kind=kind, **settings)


def optimizer_of(kind, **settings):
    return OPTIMIZERS[kind](kind=kind, **settings)


def factors(**settings):
    schedule = schedule_of(**settings)
    return [learning_rate_factor(schedule, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant", "inverse_sqrt"])
def test_warmup_is_linear_and_never_zero(kind):
    assert factors(kind=kind, warmup_steps=4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_ends_at_the_final_factor():
    values = factors(kind="cosine", warmup_steps=10, final_factor=0.2)
    assert values[10] == 1.0
    assert values[-1] == pytest.approx(0.2)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[10 + 89 // 2] == pytest.approx(0.6, abs=0.01)


def test_wsd_is_stable_and_then_decays_linearly():
    values = factors(kind="wsd", decay_fraction=0.25, final_factor=0.0)
    assert values[:75] == [1.0] * 75
    assert values[75:] == pytest.approx([1 - step / 25 for step in range(1, 26)])


def test_constant():
    assert factors(kind="constant", warmup_steps=4)[4:] == [1.0] * (STEPS - 4)


def test_inverse_sqrt_halves_in_four_times_the_steps():
    values = factors(kind="inverse_sqrt", warmup_steps=4)
    assert values[15] == pytest.approx(0.5)
    assert values[63] == pytest.approx(0.25)
    assert values[3:] == sorted(values[3:], reverse=True)


def test_only_a_schedule_that_ends_depends_on_the_length():
    short, long = ([learning_rate_factor(schedule_of(kind), 5, steps) for kind in SCHEDULES] for steps in (20, 40))
    assert [kind for kind, one, other in zip(SCHEDULES, short, long) if one != other] == ["cosine"]


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_are_decayed_and_vectors_and_embeddings_are_not(tied):
    layers = Decoder(dim=8, depth=1, heads=2, rotary=False)
    net = TransformerWrapper(num_tokens=5, max_seq_len=4, attn_layers=layers, tie_embedding=tied)
    decayed, others = parameter_groups(net, weight_decay=0.1)
    other_names = {name for name, _ in others["params"]}
    assert {"token_emb.weight", "pos_emb.weight"} <= other_names
    assert all("emb" in name or "norm" in name for name in other_names)
    assert ("to_logits.weight" in {name for name, _ in decayed["params"]}) is not tied
    assert len(decayed["params"]) + len(others["params"]) == len(list(net.parameters()))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    optimizer = build_optimizer(net, AdamWConfig(learning_rate=0.5, betas=(0.8, 0.9)))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)


def small_net(tied=False):
    torch.manual_seed(0)
    layers = Decoder(dim=32, depth=1, heads=2, feedforward_bias=True)
    return TransformerWrapper(num_tokens=50, max_seq_len=8, attn_layers=layers, tie_embedding=tied)


def give_gradients(net, seed=0):
    torch.manual_seed(seed)
    net(torch.randint(50, (16, 8))).square().mean().backward()


@pytest.mark.parametrize("tied", [False, True])
def test_muon_has_the_matrices_of_the_blocks_and_nothing_else(tied):
    net = small_net(tied)
    optimizer = build_optimizer(net, optimizer_of("muon", learning_rate=1e-3, muon_momentum=0.9))
    (muon,) = (group for group in optimizer.param_groups if group["use_muon"])
    blocks = "attn_layers.blocks.0"
    assert set(muon["param_names"]) == {
        *(f"{blocks}.attention.{name}.weight" for name in ("to_queries", "to_keys", "to_values", "to_out")),
        *(f"{blocks}.feedforward.{name}.weight" for name in ("to_hidden", "to_out")),
    }
    assert set(muon["param_names"]) == set(muon_matrices(net))
    assert (muon["lr"], muon["momentum"], muon["weight_decay"]) == (0.02, 0.9, 0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(net.parameters()))


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (96, 24)])
def test_a_step_of_muon_has_singular_values_near_one(shape):
    torch.manual_seed(0)
    direction = torch.randn(shape) * torch.logspace(0, -1, shape[1])
    step = muon_step(direction) / max(1, shape[0] / shape[1]) ** 0.5
    values = torch.linalg.svdvals(step)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    # with the directions of what it came from
    u, _, v = torch.linalg.svd(direction, full_matrices=False)
    inner = torch.diagonal(u.mT @ step @ v.mT)
    torch.testing.assert_close(inner.sort().values, values.sort().values, rtol=1e-3, atol=1e-3)


def test_muon_agrees_with_that_of_torch():
    """Which computes in bfloat16."""
    net, reference = small_net(), small_net()
    optimizer = build_optimizer(net, optimizer_of("muon", learning_rate=1e-3))
    torchs = torch.optim.Muon(list(muon_matrices(reference).values()), lr=0.02, weight_decay=0.1, momentum=0.95)
    ours, theirs = muon_matrices(net), muon_matrices(reference)
    for _ in range(3):
        for name, weight in ours.items():
            weight.grad = torch.randn(weight.shape)
            theirs[name].grad = weight.grad.clone()
        optimizer.step()
        torchs.step()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_every_optimizer_keeps_averages_and_states_in_the_shape_of_the_weight(kind):
    net, config = small_net(), optimizer_of(kind, learning_rate=1e-3)
    optimizer = build_optimizer(net, config, ema_decay=0.5)
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    give_gradients(net)
    optimizer.step()
    for name, weight in net.named_parameters():
        state = optimizer.state[weight]
        # after the first step the warm-up lets 2 / 11 of the average stay
        torch.testing.assert_close(state[EMA], before[name].lerp(weight.detach(), 9 / 11))
        assert float(state["step"]) == 1
        assert {value.shape for key, value in state.items() if key != "step"} == {weight.shape}


@pytest.mark.parametrize("kind", ["muon", "adamw", "sgd"])
def test_the_first_step_shows_whether_muon_took_effect(kind):
    net = small_net()
    config = optimizer_of("muon", learning_rate=1e-3)
    optimizer = build_optimizer(net, config)
    (group,) = (group for group in optimizer.param_groups if group["use_muon"])
    others = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    moving = optimizer if kind == "muon" else others[kind](net.parameters(), lr=group["lr"], weight_decay=0.1)
    deepspeed_engine = SimpleNamespace(module=net, optimizer=optimizer, was_step_applied=lambda: True)
    run = SimpleNamespace(engine=ZeroEngine(deepspeed_engine, config))
    check = MuonCheck()
    check.on_run_start(run)
    give_gradients(net)
    moving.step()
    if kind == "muon":
        check.on_step_end(run)
        return
    with pytest.raises(UserError, match="attn_layers"):  # the matrix that has not moved as by Muon
        check.on_step_end(run)
