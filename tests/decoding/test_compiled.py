"""Compiled decoding: the tokens that plain decoding gives, from one static graph for each shape."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from nar_scale.decoding import compiled, left_to_right
from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import BlockDiffusionWrapper
from tests.masking.helpers import requests
from tests.model.helpers import small_net
from tests.objectives.helpers import random_tokens, small_ar, small_nar

LENGTHS = [5, 1, 9, 3, 5]
NETS = {
    "rotary": {},
    "learned_positions": {"rotary": False},
    "grouped_and_normed": {"kv_heads": 1, "qk_norm": True},
    "window": {"window": 4},
    "tied": {"tie_embedding": True, "tie_embedding_scale": 0.1},
}


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that `torch.compile` has found, run without the slow code generator."""
    found, compile = [], torch.compile

    def backend(graph, inputs):
        found.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled.compiled_step.cache_clear()
    monkeypatch.setattr(
        torch, "compile", lambda function, mode=None, **options: compile(function, backend=backend, **options)
    )
    yield found
    compiled.compiled_step.cache_clear()
    torch._dynamo.reset()


def prompts_of(lengths=LENGTHS):
    return [tokens[:length] for tokens, length in zip(random_tokens(len(lengths), 20), lengths)]


def steps(graphs):
    """Graphs of a step of a whole net, and no others."""
    assert all(graph.graph.find_nodes(op="output") for graph in graphs)
    return len(graphs)


@pytest.mark.parametrize("options", NETS.values(), ids=NETS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_compiled_steps_give_the_same_tokens_from_one_graph(graphs, options, temperature):
    wrapper = small_ar(net={"max_seq_len": 40, **options})
    settings = {"temperature": temperature, "noise": requests(3), "filter_logits_fn": "top_p"}
    for length, seed in ((6, 0), (2, 1), (9, 2)):
        prompts = random_tokens(3, length, seed=seed)
        expected = wrapper.generate(prompts, 15, **settings)
        assert torch.equal(wrapper.generate(prompts, 15, compile=True, **settings), expected)
    assert steps(graphs) == 1
    inputs = [node.meta["example_value"] for node in graphs[0].graph.find_nodes(op="placeholder")]
    assert {type(size) for each in inputs for size in getattr(each, "shape", [each])} == {int}


def test_other_numbers_of_prompts_have_graphs_of_their_own_and_padding_has_none(graphs):
    wrapper = small_ar(net={"max_seq_len": 40})
    for lengths, count in ((LENGTHS, 1), ([3, 3], 2), ([4, 2], 2), ([9, 1, 1, 1, 2], 2)):
        prompts, noise = prompts_of(lengths), requests(len(lengths))
        expected = wrapper.generate(prompts, 12, noise=noise)
        assert torch.equal(wrapper.generate(prompts, 12, noise=noise, compile=True), expected)
        assert steps(graphs) == count


@pytest.mark.parametrize("length", [3, 11, 12, 15])
def test_past_max_seq_len_the_window_slides(graphs, length):
    wrapper, prompts = small_ar(), random_tokens(2, length)
    expected = wrapper.generate(prompts, 14, temperature=0.0)
    assert torch.equal(wrapper.generate(prompts, 14, temperature=0.0, compile=True), expected)
    assert steps(graphs) == (length < 12)


def test_amateurs_and_a_context_are_compiled_too(graphs):
    wrapper = small_ar(net={"max_seq_len": 40, "cross_attend": True, "dim_context": 8})
    settings = {
        "context": torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)),
        "context_mask": torch.tensor([[True] * 4, [True, False, True, False]]),
        "amateur_model": small_net(Decoder, max_seq_len=40, depth=1),
        "noise": requests(2),
    }
    prompts = random_tokens(2, 4)
    expected = wrapper.generate(prompts, 10, **settings)
    assert torch.equal(wrapper.generate(prompts, 10, compile=True, **settings), expected)
    assert steps(graphs) == 2


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("interval", [1, 4, 100])
def test_how_often_is_asked_for_the_end_changes_nothing(graphs, monkeypatch, compile, interval):
    wrapper, prompts = small_ar(net={"max_seq_len": 40}), random_tokens(4, 3)
    for end in range(10):
        settings = {"eos_token": end, "noise": requests(4, seed=end), "filter_logits_fn": None, "temperature": 3.0}
        expected = wrapper.generate(prompts, 30, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(left_to_right, "_interval", lambda device: interval)
            assert torch.equal(wrapper.generate(prompts, 30, compile=compile, **settings), expected)
        ended = (expected[:, 3:] == end).any(dim=1)
        assert expected.shape[1] == 33 or ended.all()


def test_a_network_keeps_its_buffers_for_sequences_of_the_same_shape():
    net = small_net(Decoder)
    cache = compiled.cache_of(net, 2, 12)
    net(random_tokens(2, 3), cache=cache)
    assert cache.lengths.tolist() == [3, 3]
    again = compiled.cache_of(net, 2, 12)
    assert again is cache
    assert again.lengths.tolist() == [0, 0]
    assert compiled.cache_of(net, 3, 12) is not cache
    assert compiled.cache_of(small_net(Decoder), 3, 12) is not compiled.cache_of(net, 3, 12)


def test_without_a_cache_there_is_nothing_to_compile():
    with pytest.raises(ValueError, match="cache_kv"):
        small_ar().generate(random_tokens(1, 3), 2, compile=True, cache_kv=False)


@pytest.mark.parametrize("options", [{}, {"self_cond": True}, {"num_classes": 3}, {"self_token_critic": True}])
def test_a_compiled_network_fills_in_the_same_tokens(graphs, options):
    wrapper = small_nar(steps=6, **options)
    settings = {"noise": requests(3), "sampler": "random"}
    if "num_classes" in options:
        settings |= {"classes": torch.tensor([0, 2, 1]), "guidance_scale": 2.0}
    expected = wrapper.generate(3, **settings)
    assert torch.equal(wrapper.generate(3, compile=True, **settings), expected)
    count = len(graphs)
    assert count == (1 if "num_classes" in options else 2)  # the first pass is of one sequence, if all are alike
    assert torch.equal(wrapper.generate(3, compile=True, **settings), expected)
    assert len(graphs) == count


def test_block_diffusion_is_not_compiled():
    wrapper = BlockDiffusionWrapper(small_net(Encoder), mask_id=10, block_size=4)
    with pytest.raises(ValueError, match="compile"):
        wrapper.generate(2, compile=True)
