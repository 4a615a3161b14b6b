"""What a token costs by objective and recomputation."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from nar_scale.data import Batch
from nar_scale.objectives import build_wrapper
from nar_scale.planning.cost.workload import workload_of
from tests.config.helpers import config_with

VOCABULARY, LENGTH, SEQUENCES = 400, 64, 16
KINDS = {
    "autoregressive": {"objective.kind": "autoregressive"},
    "masked": {},
    "cosine": {"objective.schedule": "cosine"},
    "cosine in training": {"objective.training_schedule": "cosine"},
    "self-conditioned": {"objective.self_conditioning": True},
    "blocks": {"objective.kind": "block_diffusion", "objective.block_size": 16},
    "critic": {"objective.self_token_critic": True},
    "recomputed": {"model.activation_checkpointing": "full"},
    "in chunks": {"model.logits_chunk_size": 20_000},
}


class Operations(TorchDispatchMode):
    """Counts those of matrix products. (torch's `FlopCounterMode` fails where a module runs without gradients.)"""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        counted = flop_registry.get(function._overloadpacket)
        if counted is not None:
            self.count += counted(*arguments, **(options or {}), out_val=result)
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind):
    model = {"dim": 64, "depth": 3, "heads": 4, "max_seq_len": LENGTH, "feedforward_dim": 176}
    config = config_with(**{"model": model, "training.micro_batch_size": SEQUENCES, **KINDS[kind]})
    wrapper = build_wrapper(config, VOCABULARY)
    ids = torch.arange(SEQUENCES)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH))
    batch = Batch(tokens, torch.full((SEQUENCES,), LENGTH), ids, torch.zeros_like(ids), ids)
    with sdpa_kernel(SDPBackend.MATH), Operations() as operations:
        wrapper.loss_terms(batch, seed=0).total().backward()
    workload = workload_of(wrapper, config)
    # attention of plain products: the whole square also where the future is hidden, and twice the forward pass backward
    causal = 2 if kind == "autoregressive" else 1
    passes = {"self-conditioned": 4.0 / 4.5, "recomputed": 4.0 / 4.5}.get(kind, 3.0 / 3.5)
    planned = workload.matrix_flops + causal * passes * workload.attention_flops
    assert planned * SEQUENCES * LENGTH == pytest.approx(operations.count, rel=0.05)


def test_flex_attention_skips_what_is_hidden():
    flex = {"model.attention_kernel": "flex"}
    blocks = {"objective.kind": "block_diffusion", "objective.block_size": 4}

    def attention(**changes):
        config = config_with(**changes)
        return workload_of(build_wrapper(config, VOCABULARY), config).attention_flops

    assert attention(**blocks, **flex) == attention(**blocks) / 4
    assert attention(**{"model.window": 3}, **flex) == attention(**{"model.window": 3}) / 2
    causal = {"objective.kind": "autoregressive", "model.window": 3}
    assert attention(**causal, **flex) == attention(**causal) / 4
    assert attention(**flex) == attention()


def test_recomputation_moves_more_memory():
    def traffic(how):
        config = config_with(**{"model.activation_checkpointing": how})
        return workload_of(build_wrapper(config, VOCABULARY), config).traffic

    assert traffic("none") < traffic("selective") < traffic("full")
