"""Blocks that are compiled, and blocks that are computed again in the backward pass."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import AutoregressiveWrapper, NonAutoregressiveWrapper

from .helpers import small_net

N = 9
LENGTHS = torch.tensor([9, 5])


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products that are computed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return function(*arguments, **(options or {}))


def tokens():
    return torch.randint(11, (2, N), generator=torch.Generator().manual_seed(0))


def gradients(net):
    torch.manual_seed(1)
    net.train()(tokens(), mask=torch.arange(N) < LENGTHS[:, None]).square().sum().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def products_of_the_backward_pass(net):
    loss = net.train()(tokens()).square().sum()
    with MatrixProducts() as products:
        loss.backward()
    return products.count


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that `torch.compile` has found, run without the slow code generator."""
    found, compile = [], torch.compile

    def backend(graph, inputs):
        found.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=backend, **options))
    yield found
    torch._dynamo.reset()


def test_selective_checkpointing_repeats_no_matrix_product():
    plain, selective, full = (
        products_of_the_backward_pass(small_net(Encoder, activation_checkpointing=how))
        for how in ("none", "selective", "full")
    )
    assert selective == plain
    assert full >= plain + 2 * 5  # the last one of a block may not be needed again


@pytest.mark.parametrize(("kind", "how"), [(Encoder, "none"), (Decoder, "selective"), (Encoder, "full")])
def test_compiled_blocks_share_one_graph_and_give_the_same_gradients(graphs, kind, how):
    options = {"depth": 3, "activation_checkpointing": how, "dropout": 0.2}
    expected = gradients(small_net(kind, **options))
    assert not graphs
    for name, gradient in gradients(small_net(kind, compile=True, **options)).items():
        torch.testing.assert_close(gradient, expected[name], msg=lambda text, name=name: f"{name}: {text}")
    assert len(graphs) == 1
    names = {node.name for node in graphs[0].graph.nodes}
    assert ("tag_activation_checkpoint" in names) == (how != "none")  # else the compiler would not know what to keep


def train_on(net, batch, n):
    torch.manual_seed(1)
    net.train()(tokens_of(batch, n)).square().sum().backward()


def tokens_of(batch, n):
    return torch.randint(11, (batch, n), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "how"), [(Encoder, "none"), (Decoder, "full")])
def test_every_shape_has_one_static_graph(graphs, kind, how):
    net = small_net(kind, compile=True, activation_checkpointing=how)
    shapes = [(2, N), (2, 7), (1, N)]
    for round in range(2):
        for number, shape in enumerate(shapes):
            train_on(net, *shape)
            assert len(graphs) == (number + 1 if round == 0 else len(shapes))
    inputs = [node.meta["example_value"] for graph in graphs for node in graph.graph.find_nodes(op="placeholder")]
    assert len(inputs) > len(shapes)
    assert {type(size) for each in inputs for size in getattr(each, "shape", [each])} == {int}  # and no symbol


def test_evaluation_between_steps_changes_no_graph(graphs):
    ar = AutoregressiveWrapper(small_net(Decoder, compile=True))
    train_on(ar.net, 2, N)
    ar.eval()(tokens_of(3, 6))
    ar.generate(tokens(), 3)
    train_on(ar.net, 2, N)
    with torch.no_grad():
        ar.net.train()(tokens_of(4, 5))
    train_on(ar.net, 2, N)
    assert len(graphs) == 1


def test_evaluation_and_generation_run_uncompiled(graphs):
    for compile in (False, True):
        torch.manual_seed(0)
        nar = NonAutoregressiveWrapper(small_net(Encoder, max_seq_len=N, compile=compile), mask_id=10, steps=3)
        ar = AutoregressiveWrapper(small_net(Decoder, compile=compile))
        torch.manual_seed(1)
        results = nar.generate(2), ar.generate(tokens(), 3), nar.eval()(tokens() % 10).loss, ar.eval()(tokens())
        if not compile:
            expected = results
    assert not graphs
    for result, wanted in zip(results, expected):
        assert torch.equal(result, wanted)
    nar.train()(tokens() % 10).loss.backward()
    assert len(graphs) == 1
