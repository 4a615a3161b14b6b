"""Drafts that a network verifies itself give what it gives left to right."""

from functools import partial
from itertools import product

import pytest
import torch

from nar_scale.decoding import top_k, top_p
from nar_scale.masking import Noise
from nar_scale.model import Decoder
from nar_scale.objectives import HybridWrapper
from tests.masking.helpers import chi_square_excess, requests
from tests.model.helpers import small_net
from tests.objectives.helpers import random_tokens

MASK_ID, N, ROWS = 10, 48, 6_000


def hybrid(block_size=4, **net):
    return HybridWrapper(small_net(Decoder, max_seq_len=N, **net), mask_id=MASK_ID, block_size=block_size).eval()


def tiny(block_size=2):
    """A real network of three tokens and the mask, whose distributions are not too sharp to be told apart."""
    net = small_net(Decoder, num_tokens=4, max_seq_len=8)
    with torch.no_grad():
        net.to_logits.weight.mul_(0.3)
    return HybridWrapper(net, mask_id=3, block_size=block_size).eval()


@torch.no_grad()
def joint_of(wrapper, prompt, count, temperature, filters):
    """The probability of each continuation, from the network's distributions left to right."""
    answers = torch.tensor(list(product(range(3), repeat=count)))
    logits = wrapper.net(torch.cat((torch.tensor(prompt).expand(len(answers), -1), answers), dim=1))
    logits = logits[:, len(prompt) - 1 : -1].double()
    for logit_filter in filters:
        logits = logit_filter(logits)
    p = (logits / temperature).softmax(dim=-1)
    return p.gather(-1, answers[..., None])[..., 0].prod(dim=1)


@pytest.mark.parametrize(("block_size", "shared_calls"), [(2, True), (4, True), (4, False)])
@pytest.mark.parametrize(
    ("temperature", "filters", "draft_temperature"),
    [
        (1.0, [], None),
        (0.7, [], 2.0),
        (1.5, [partial(top_k, k=2)], None),
        (1.0, [partial(top_p, thres=0.7)], 0.5),
        (1.0, [], 0.0),
    ],
)
def test_the_distribution_is_that_of_left_to_right_sampling(
    block_size, shared_calls, temperature, filters, draft_temperature
):
    wrapper, prompt, count = tiny(block_size), [0, 2], 4
    result = wrapper.generate(
        torch.tensor(prompt).expand(ROWS, -1),
        count,
        temperature=temperature,
        filter_logits_fn=filters,
        draft_temperature=draft_temperature,
        shared_calls=shared_calls,
        noise=requests(ROWS),
        return_prompt=False,
        return_network_calls=True,
    )
    numbers = (result.tokens * 3 ** torch.arange(count - 1, -1, -1)).sum(dim=1)
    joint = joint_of(wrapper, prompt, count, temperature, filters)
    assert joint.sum().item() == pytest.approx(1.0)
    assert chi_square_excess(numbers, joint) < 4
    tokens_a_call = count * ROWS / int(result.network_calls.sum())
    assert 1.1 < tokens_a_call < min(block_size, count)  # some drafts are accepted, and some are not


@pytest.mark.parametrize("net", [{}, {"rotary": False, "kv_heads": 1}, {"tie_embedding": True, "qk_norm": True}])
@pytest.mark.parametrize("block_size", [2, 4, 16])
def test_greedy_tokens_are_those_of_left_to_right_decoding(block_size, net):
    wrapper, prompts = hybrid(block_size, **net), random_tokens(6, 9)
    expected = wrapper.autoregressive.generate(prompts, N - 9, temperature=0.0)
    assert torch.equal(wrapper.generate(prompts, N - 9, temperature=0.0), expected)
    assert torch.equal(wrapper.generate(prompts, N - 9, temperature=0.0, draft_temperature=3.0), expected)
    assert torch.equal(wrapper.generate(prompts, N - 9, temperature=0.0, shared_calls=False), expected)
    assert torch.equal(wrapper.generate(prompts[0], 5, temperature=0.0), expected[0, :14])


@pytest.mark.parametrize(("temperature", "shared_calls"), [(0.0, True), (1.0, True), (1.0, False)])
def test_a_prompt_gives_the_same_alone_and_in_a_batch(temperature, shared_calls):
    wrapper = hybrid()
    prompts = [random_tokens(1, length, seed=length)[0] for length in (3, 9, 1, 20)]
    settings = {"temperature": temperature, "shared_calls": shared_calls, "eos_token": 8, "return_network_calls": True}
    together = wrapper.generate(prompts, 25, noise=requests(4), **settings)
    for row, prompt in enumerate(prompts):
        alone = wrapper.generate([prompt], 25, noise=Noise.of_requests(0, torch.tensor([row])), **settings)
        assert [each[0].tolist() for each in alone] == [each[row].tolist() for each in together]
    assert len(together.network_calls.unique()) > 1


def test_nothing_follows_the_end_token():
    wrapper, prompts = hybrid(), random_tokens(30, 5)
    settings = {"return_prompt": False, "return_network_calls": True}
    whole = wrapper.generate(prompts, 30, noise=requests(30), **settings)
    cut = wrapper.generate(prompts, 30, noise=requests(30), eos_token=8, **settings)
    for before, after in zip(whole.tokens.tolist(), cut.tokens.tolist()):
        kept = before.index(8) + 1 if 8 in before else 30
        assert after == before[:kept] + [0] * (30 - kept)
    assert bool((cut.network_calls <= whole.network_calls).all())
    assert bool((cut.network_calls < whole.network_calls).any())


def test_calls_are_no_more_than_tokens():
    wrapper = hybrid()
    result = wrapper.generate(random_tokens(5, 2), 40, noise=requests(5), temperature=4.0, return_network_calls=True)
    assert result.tokens.shape == (5, 42)
    assert bool((result.network_calls <= 40).all())
    assert bool((result.network_calls >= 40 / 4).all())
    nothing = wrapper.generate(random_tokens(5, 2), 0, return_network_calls=True)
    assert (nothing.tokens.shape, nothing.network_calls.tolist()) == ((5, 2), [0] * 5)
