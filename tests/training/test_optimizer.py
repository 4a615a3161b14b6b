import pytest
import torch

from nar_scale import Decoder, TransformerWrapper
from nar_scale.config import OptimizerConfig, ScheduleConfig
from nar_scale.training.optimizer import build_optimizer, learning_rate_factor, parameter_groups

STEPS = 100


def factors(**settings):
    schedule = ScheduleConfig(**settings)
    return [learning_rate_factor(schedule, step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_and_never_zero(kind):
    assert factors(kind=kind, warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


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
    assert factors(kind="constant") == [1.0] * STEPS


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
    optimizer = build_optimizer(net, OptimizerConfig(learning_rate=0.5, betas=(0.8, 0.9)))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.9)
