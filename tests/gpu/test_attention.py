"""FlexAttention beside SDPA: the gradients where a window, documents, padding and block diffusion hide something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from nar_scale.data import Batch
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.objectives import AutoregressiveWrapper, BlockDiffusionWrapper, NonAutoregressiveWrapper, Objective

from . import inside

pytestmark = [
    pytest.mark.timeout(900),  # a kernel is compiled for each
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),  # as it is on CPUs
]
BATCH, N, VOCABULARY = 3, 256, 40  # two blocks of FlexAttention, four for block diffusion
# Float32 sums of up to 512 terms in another order, through two layers, are some 1e-6 apart; SDPA's kernel makes each
# product of three in TF32, to 2^-21. One in TF32 alone is right to 2^-11, far beyond this.
TOLERANCE = 1e-4
# A unit in the last place of bfloat16 is 2^-8 of a number; the kernels round attention weights and their gradients to
# it at different points, and gradients of queries and keys are differences of them.
BFLOAT16_TOLERANCE = 5e-2


@pytest.fixture(autouse=True)
def fresh_compiler(device: torch.device) -> Iterator[None]:
    """One kernel after the other: with as many as here torch would stop compiling and take a slow way."""
    assert torch.get_float32_matmul_precision() == "highest"
    torch._dynamo.reset()
    with inside.flex_backward_on_cpus() if device.type == "cpu" else nullcontext():
        yield


def wrapper_of(case: str, kernel: str) -> Objective:
    """The same weights for each kernel."""
    torch.manual_seed(0)
    causal = case == "causal_window"
    layers: Any = (Decoder if causal else Encoder)(
        dim=64,
        depth=2,
        heads=2,
        kv_heads=1,
        window=50 if "window" in case else None,
        attention_kernel=kernel,  # type: ignore[arg-type]
    )
    net = TransformerWrapper(num_tokens=VOCABULARY + 1, max_seq_len=N, attn_layers=layers)
    if causal:
        return AutoregressiveWrapper(net)
    options: dict[str, Any] = {"mask_id": VOCABULARY, "no_replace_prob": 0.0, "random_token_prob": 0.0}
    if case == "block_diffusion":
        return BlockDiffusionWrapper(net, block_size=32, **options)
    return NonAutoregressiveWrapper(net, **options)


def batch_of(case: str) -> Batch:
    tokens = torch.randint(VOCABULARY, (BATCH, N), generator=torch.Generator().manual_seed(1))
    ids = torch.arange(BATCH)
    full = torch.full((BATCH,), N)
    documents = torch.stack([torch.arange(N) // size for size in (50, 130, N)]) if "documents" in case else None
    lengths = torch.tensor([N, 200, 77]) if "padding" in case else full
    present = torch.arange(N) < lengths[:, None]
    documents = None if documents is None else documents * present
    return Batch(tokens * present, lengths, ids, torch.zeros_like(ids), ids, None, documents)


def loss_and_gradients(
    case: str, kernel: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    wrapper = wrapper_of(case, kernel).to(device, dtype).train()
    loss = wrapper.loss_terms(batch_of(case).to(device), seed=5).total()
    loss.backward()
    gradients = {name: weight.grad.float() for name, weight in wrapper.named_parameters() if weight.grad is not None}
    return loss.detach(), gradients


def assert_equal(case: str, device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    """Of each weight, the difference's norm over that of the gradient."""
    loss, gradients = loss_and_gradients(case, "flex", device, dtype)
    expected_loss, expected = loss_and_gradients(case, "sdpa", device, dtype)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    assert gradients.keys() == expected.keys()
    far = {
        name: float((gradients[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
        if not (gradients[name] - gradient).norm() <= tolerance * gradient.norm()
    }
    assert not far


CASES = ("window", "documents", "padding", "block_diffusion", "causal_window", "documents_and_padding")


@pytest.mark.parametrize("case_name", CASES)
def test_gradients_in_float32_are_those_of_sdpa(device: torch.device, case_name: str) -> None:
    assert_equal(case_name, device, torch.float32, TOLERANCE)


@pytest.mark.parametrize("case_name", ["window", "block_diffusion"])
def test_gradients_in_bfloat16_are_those_of_sdpa(device: torch.device, case_name: str) -> None:
    assert_equal(case_name, device, torch.bfloat16, BFLOAT16_TOLERANCE)
