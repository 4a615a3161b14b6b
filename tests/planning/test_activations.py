"""Activations as planned, against the bytes of the tensors that a forward pass leaves and a backward pass adds."""

import itertools

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nar_scale.config import resolve_deepspeed_config
from nar_scale.data import Batch
from nar_scale.objectives import build_wrapper
from nar_scale.planning.memory_estimate import activation_elements, estimate_memory
from tests.config.helpers import config_with

SEQUENCES = 8
KINDS = {
    "autoregressive": {"objective.kind": "autoregressive"},
    "masked": {},
    "blocks": {"objective.kind": "block_diffusion", "objective.block_size": 16},
    "critic": {"objective.self_token_critic": True},
}
TIMES = {"blocks": 2, "critic": 2}  # the true sequence beside the masked one; a second pass
RECOMPUTATIONS = ("none", "selective", "full")


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made and that are still there."""

    def __init__(self, ignored):
        super().__init__()
        self.ignored, self.made, self.peak = ignored, {}, 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.ignored:
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.alive())
        return result

    def alive(self):
        self.made = {key: made for key, made in self.made.items() if not made[0].expired()}
        return sum(size for _, size in self.made.values())


def measured(kind, how, depth):
    """Bytes at the end of a forward pass, at most in a step, and as planned; and the config."""
    changes = {
        "model": {
            **{"dim": 64, "depth": depth, "heads": 4, "max_seq_len": 64, "activation_checkpointing": how},
            "norm": "layernorm",  # on CPUs, other than on GPUs, torch's RMSNorm is several operations and keeps more
        },
        "training.micro_batch_size": SEQUENCES,
        "training.precision": "fp32",
        **KINDS[kind],
    }
    config = config_with(**changes)
    torch.manual_seed(0)
    wrapper = build_wrapper(config, 257)
    ids = torch.arange(SEQUENCES)
    batch = Batch(
        torch.randint(257, (SEQUENCES, 64)), torch.full((SEQUENCES,), 64), ids, torch.zeros_like(ids), ids.clone()
    )
    ignored = {weight.untyped_storage().data_ptr() for weight in wrapper.parameters()}
    ignored |= {each.untyped_storage().data_ptr() for each in vars(batch).values() if isinstance(each, torch.Tensor)}
    with Storages(ignored) as storages:
        loss = wrapper.loss_terms(batch, seed=0).total()
        kept = storages.alive()
        loss.backward()
    parts = {part.name: part.size for part in estimate_memory(wrapper, config, resolve_deepspeed_config(config, 1), 1)}
    return kept, storages.peak, parts["activations"] + parts["logits"], config


@pytest.mark.parametrize(("kind", "how"), [*itertools.product(KINDS, RECOMPUTATIONS)])
def test_a_step_takes_what_is_planned(kind, how):
    few, _, _, _ = measured(kind, how, depth=4)
    kept, peak, planned, config = measured(kind, how, depth=8)
    assert planned == pytest.approx(peak, rel=0.1)
    # the rest of the network, and what is computed again at a time, do not depend on the number of blocks
    tokens = SEQUENCES * 64 * TIMES.get(kind, 1)
    elements, _ = activation_elements(config, tokens)
    assert (kept - few) * 8 / 4 == pytest.approx(elements * 4, rel=0.1)
