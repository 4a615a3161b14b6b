"""Nets whose sequences several ranks sequence_parallel, here threads that trade tensors as ranks do."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from nar_scale.model import Decoder, Encoder, KeyValueCache, SequenceParallelContext

from .helpers import small_net

N = 12


def among_peers(size: int, work: Callable[[SequenceParallelContext], Any]) -> list[Any]:
    """What the peers of a sequence compute, each in a thread."""
    given: list[Tensor | None] = [None] * size
    barrier = threading.Barrier(size, timeout=30)

    def exchange_of(rank: int) -> Callable[[Tensor], Tensor]:
        def exchange(values: Tensor) -> Tensor:
            given[rank] = values
            barrier.wait()
            received = torch.stack([values[rank] for values in given if values is not None])
            barrier.wait()
            return received

        return exchange

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: work(SequenceParallelContext(rank, size, exchange_of(rank))), range(size)))


def shared(net: torch.nn.Module, size: int, tokens: Tensor, **arguments: Any) -> Tensor:
    """Logits of the whole, put together from those that peers compute."""

    @torch.no_grad()
    def work(sequence_parallel: SequenceParallelContext) -> Tensor:
        return net(tokens, sequence_parallel=sequence_parallel, **arguments)

    return torch.cat(among_peers(size, work), dim=1)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(11, (3, N), generator=torch.Generator().manual_seed(1))


LENGTHS = torch.arange(N) < torch.tensor([[12], [7], [1]])
DOCUMENTS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3]).expand(3, N)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", [Encoder, Decoder])
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"kv_heads": 1, "qk_norm": True, "qk_bias": True}, {}),
        ({"kv_heads": 2}, {"mask": LENGTHS}),
        ({"rotary": False, "window": 3}, {}),
        ({"window": 5, "attention_kernel": "flex", "kv_heads": 2}, {"documents": DOCUMENTS}),
        ({}, {"documents": DOCUMENTS, "positions": torch.arange(N).expand(3, N) % 5}),
        ({}, {"rule": lambda query, key: (query + key) % 3 > 0}),
    ],
)
def test_the_parts_make_up_the_whole(kind, size, options, arguments, tokens) -> None:
    net = small_net(kind, heads=4, dim=32, **options).eval()
    with torch.no_grad():
        whole = net(tokens, **arguments)
    torch.testing.assert_close(shared(net, size, tokens, **arguments), whole, rtol=1e-4, atol=1e-4)


def test_a_context_is_everybodys(tokens) -> None:
    net = small_net(Encoder, heads=4, cross_attend=True, dim_context=6).eval()
    context, present = torch.randn(3, 5, 6), torch.arange(5) < torch.tensor([[5], [3], [1]])
    arguments = {"context": context, "context_mask": present}
    torch.testing.assert_close(shared(net, 4, tokens, **arguments), net(tokens, **arguments), rtol=1e-4, atol=1e-4)


def test_the_z_loss_is_that_of_all_heads(tokens) -> None:
    net = small_net(Decoder, heads=4, kv_heads=2).eval()
    settings = {"return_output": True, "with_z_loss": True}
    with torch.no_grad():
        whole = net(tokens, **settings).attention_z_loss

        def work(sequence_parallel: SequenceParallelContext) -> Tensor:
            with torch.no_grad():
                return net(tokens, sequence_parallel=sequence_parallel, **settings).attention_z_loss

        parts = among_peers(4, work)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_positions_in_the_whole_of_those_in_a_part(size) -> None:
    values = torch.arange(4 * N).view(4, N)
    for rank in range(size):
        sequence_parallel = SequenceParallelContext(rank, size, lambda values: values)
        part = sequence_parallel.shard(values)
        found = sequence_parallel.global_positions(torch.arange(part.numel()), N)
        assert torch.equal(values.flatten()[found], part.flatten())


def test_what_cannot_be_shared_is_refused(tokens) -> None:
    net = small_net(Encoder, heads=4).eval()
    with pytest.raises(ValueError, match="12 tokens do not divide into the parts of 5 ranks"):
        net(tokens, sequence_parallel=SequenceParallelContext(0, 5, lambda values: values))
    sequence_parallel = SequenceParallelContext(0, 2, lambda values: values)
    for more in ({"cache": KeyValueCache(N)}, {"prepend_embeds": torch.zeros(3, 2, 16)}):
        with pytest.raises(ValueError, match="no cache and no prepended embeddings"):
            net(tokens, sequence_parallel=sequence_parallel, **more)
