"""The first losses of each objective, to the last digits that CPUs agree on: a change that moves them shows here.

They are in golden_losses.json. Where a change is meant to move them, write them anew and say so in the commit message:

    python -m tests.objectives.test_golden_losses
"""

import json
from pathlib import Path

import pytest
import torch

from nar_scale.data import Batch
from nar_scale.objectives import build_wrapper
from tests.config.helpers import config_with

FILE = Path(__file__).with_name("golden_losses.json")
ROUNDING = 1e-5  # relative; another kind of CPU adds up in another order
STEPS, VOCABULARY = 4, 40
KINDS = {
    "autoregressive": {"objective.kind": "autoregressive"},
    "non_autoregressive": {},
    "unweighted": {"objective.loss": "unweighted"},
    "bell": {"objective.training_schedule": "bell"},
    "self_conditioning": {"objective.self_conditioning": True},
    "block_diffusion": {"objective.kind": "block_diffusion", "objective.block_size": 4},
    "hybrid": {"objective.kind": "hybrid", "objective.block_size": 4},
}


def losses(kind):
    """Nats a token of the first steps of AdamW on random tokens, which one process takes in float32."""
    torch.manual_seed(0)
    wrapper = build_wrapper(config_with(**KINDS[kind]), VOCABULARY)
    optimizer = torch.optim.AdamW(wrapper.parameters(), 1e-2)
    found = []
    for step in range(STEPS):
        ids = torch.arange(8) + 8 * step
        tokens = torch.randint(VOCABULARY, (8, 12), generator=torch.Generator().manual_seed(step))
        loss = wrapper.loss_terms(Batch(tokens, torch.full((8,), 12), ids, torch.zeros_like(ids), ids), seed=0).total()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_losses_are_those_that_were_written_down(kind):
    assert losses(kind) == pytest.approx(json.loads(FILE.read_text())[kind], rel=ROUNDING)


def test_nothing_is_written_down_that_is_not_compared():
    assert json.loads(FILE.read_text()).keys() == KINDS.keys()


if __name__ == "__main__":
    FILE.write_text(json.dumps({kind: losses(kind) for kind in KINDS}, indent=1) + "\n")
