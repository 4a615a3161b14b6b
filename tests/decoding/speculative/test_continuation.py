"""Generation from drafts: the distribution, and at temperature 0 the tokens, of one token a call."""

from itertools import product

import pytest
import torch

from nar_scale.decoding import Prompts, Sequences
from nar_scale.decoding.speculative import PromptLookup
from nar_scale.model import Decoder
from nar_scale.objectives import AutoregressiveWrapper
from tests.errors import refused
from tests.masking.helpers import chi_square_excess, requests, rows_of
from tests.model.helpers import small_net
from tests.objectives.helpers import random_tokens, small_ar

LENGTHS = [5, 1, 9, 3, 5]
NETS = {
    "rotary": {},
    "learned_positions": {"rotary": False},
    "grouped_and_normed": {"kv_heads": 1, "qk_norm": True},
    "window": {"window": 4},
}
every_net = pytest.mark.parametrize("options", NETS.values(), ids=NETS)


def attentive(num_tokens=11, **options):
    """A wrapper whose tokens depend on those before, as those of an untrained net hardly do."""
    net = small_net(Decoder, num_tokens=num_tokens, **{"max_seq_len": 40, **options})
    with torch.no_grad():
        for block in net.attn_layers.blocks:
            block.attention.to_out.weight.mul_(100)
    return AutoregressiveWrapper(net)


def alike(wrapper, amount=0.05):
    """A draft that is often right: the same net with noise on its weights."""
    net = wrapper.net
    draft = small_net(Decoder, num_tokens=net.num_tokens, max_seq_len=net.max_seq_len, rotary=net.pos_emb is None)
    if {name for name, _ in draft.named_parameters()} != {name for name, _ in net.named_parameters()}:
        return draft
    with torch.no_grad():
        for ours, theirs in zip(draft.parameters(), net.parameters()):
            if ours.shape == theirs.shape:
                ours.copy_(theirs + amount * theirs.std() * torch.randn_like(theirs))
    return draft


def drafts_of(wrapper):
    return {
        "prompt_lookup": "prompt_lookup",
        "alike": alike(wrapper),
        "other": small_net(Decoder, max_seq_len=40, depth=1),
    }


def prompts_of(lengths=LENGTHS):
    """Prompts of three tokens, which repeat themselves."""
    return [tokens[:length] for tokens, length in zip(random_tokens(len(lengths), 20, num_tokens=3), lengths)]


@every_net
@pytest.mark.parametrize("draft", ["prompt_lookup", "alike", "other"])
@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_at_temperature_0_the_tokens_are_those_of_one_a_call(options, draft, draft_tokens):
    wrapper, prompts = attentive(**options), prompts_of()
    settings = {"seq_len": 25, "temperature": 0.0}
    expected = wrapper.generate(prompts, **settings)
    ours, calls = wrapper.generate(
        prompts, draft=drafts_of(wrapper)[draft], draft_tokens=draft_tokens, return_network_calls=True, **settings
    )
    assert torch.equal(ours, expected)
    assert ((calls >= 25 / (draft_tokens + 1)) & (calls <= 25)).all()


@pytest.mark.parametrize(
    "settings", [{"filter_logits_fn": None}, {"filter_kwargs": {"k": 3}}, {"filter_logits_fn": "top_p"}]
)
def test_prompt_lookup_changes_no_token(settings):
    wrapper, prompts, noise = attentive(num_tokens=5), prompts_of(), requests(5)
    expected = wrapper.generate(prompts, 25, noise=noise, **settings)
    ours, calls = wrapper.generate(
        prompts, 25, noise=noise, draft="prompt_lookup", return_network_calls=True, **settings
    )
    assert torch.equal(ours, expected)
    assert int(calls.sum()) < 5 * 25


@pytest.mark.parametrize("draft", ["alike", "other"])
@pytest.mark.parametrize("eos", [None, 4])
def test_a_sequence_is_the_same_alone_and_in_a_batch(draft, eos):
    wrapper, prompts, noise = attentive(), prompts_of(), requests(5)
    settings = {"draft": drafts_of(wrapper)[draft], "temperature": 1.5, "filter_logits_fn": None, "eos_token": eos}
    together, calls = wrapper.generate(prompts, 25, noise=noise, return_network_calls=True, **settings)
    for row, prompt in enumerate(prompts):
        alone, its_calls = wrapper.generate(
            [prompt], 25, noise=rows_of(noise, slice(row, row + 1)), return_network_calls=True, **settings
        )
        width = alone.shape[1]
        assert torch.equal(alone[0], together[row, :width])
        assert (together[row, width:] == 0).all()
        assert its_calls[0] == calls[row]
    assert len(set(calls.tolist())) > 1


@pytest.mark.parametrize(("draft", "temperature"), [("prompt_lookup", 1.0), ("alike", 0.0)])
def test_each_prompt_may_have_a_length_of_its_own(draft, temperature):
    wrapper, prompts, noise = attentive(), prompts_of(), requests(5)
    settings = {"draft": drafts_of(wrapper)[draft], "noise": noise, "temperature": temperature}
    whole = wrapper.generate(prompts, 25, **settings)
    lengths = torch.tensor([25, 7, 0, 12, 1])
    cut, calls = wrapper.generate(prompts, lengths, return_network_calls=True, **settings)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(cut[row, :length], whole[row, :length])
        assert (cut[row, length:] == 0).all()
    assert calls.gt(0).tolist() == lengths.gt(0).tolist()


@pytest.mark.parametrize("amount", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_joint_is_reproduced(amount, temperature):
    """All 27 continuations of a net, whose probabilities whole forward passes give."""
    count = 20_000
    wrapper = attentive(num_tokens=3)
    draft = alike(wrapper, amount)
    draft.to_logits.weight.data.mul_(0.3 if amount else 1)
    wrapper.net.to_logits.weight.data.mul_(0.3)
    if not amount:
        draft.to_logits.weight.data.copy_(wrapper.net.to_logits.weight)
    drawn, calls = wrapper.generate(
        torch.zeros(count, 1, dtype=torch.int64),
        3,
        temperature=temperature,
        filter_logits_fn=None,
        return_prompt=False,
        noise=requests(count),
        draft=draft,
        draft_tokens=2,
        return_network_calls=True,
    )
    outcomes = torch.tensor(list(product(range(3), repeat=3)))
    sequences = torch.cat((torch.zeros(27, 1, dtype=torch.int64), outcomes), dim=1)
    with torch.no_grad():
        log_probs = (wrapper.net(sequences[:, :-1]).double() / temperature).log_softmax(dim=-1)
    joint = log_probs.gather(2, outcomes[..., None])[..., 0].sum(dim=1).exp()
    assert float(joint.sum()) == pytest.approx(1)
    assert chi_square_excess((drawn * torch.tensor([9, 3, 1])).sum(dim=1), joint) < 5
    assert set(calls.tolist()) == ({1} if amount == 0 else {1, 2, 3})


def test_a_call_adds_what_was_accepted_and_one_more():
    wrapper, noise = attentive(), requests(3)
    seen = []
    ours, calls = wrapper.generate(
        random_tokens(3, 4),
        20,
        noise=noise,
        draft=alike(wrapper),
        draft_tokens=3,
        return_prompt=False,
        return_network_calls=True,
        callback=lambda tokens, call: seen.append((tokens.clone(), call)),
    )
    assert [call for _, call in seen] == list(range(1, int(calls.max()) + 1))
    widths = [tokens.shape[1] for tokens, _ in seen]
    assert widths[-1] == 20
    assert all(0 <= later - before <= 4 for before, later in zip([0, *widths], widths))
    assert torch.equal(seen[-1][0], ours)


def test_ended_sequences_are_padded():
    wrapper, prompts, noise = attentive(), prompts_of(), requests(5)
    for end in range(5):
        settings = {"noise": noise, "eos_token": end, "temperature": 3.0, "filter_logits_fn": None}
        expected = wrapper.generate(prompts, 25, **settings)
        ours = wrapper.generate(prompts, 25, draft="prompt_lookup", **settings)
        assert torch.equal(ours, expected)


def test_prepended_embeddings_and_a_context_are_seen():
    net = small_net(Decoder, max_seq_len=40, cross_attend=True, dim_context=5)
    wrapper, prompts = AutoregressiveWrapper(net), prompts_of([4, 2])
    generator = torch.Generator().manual_seed(0)
    settings = {
        "context": 20 * torch.randn(2, 4, 5, generator=generator),
        "prepend_embeds": 30 * torch.randn(2, 3, 16, generator=generator),
        "noise": requests(2),
    }
    expected = wrapper.generate(prompts, 20, **settings)
    assert torch.equal(wrapper.generate(prompts, 20, draft="prompt_lookup", **settings), expected)


def test_a_lookup_drafts_what_followed_the_longest_match():
    rows = [[1, 2, 3, 4, 9, 2, 3], [5, 5, 5], [1, 2, 3], [7], [2, 3, 1, 3, 6, 3], [1, 2, 8, 2, 9, 1, 2]]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    sequences = Sequences(Prompts(padded, lengths), 4)
    drafted, counts, proposals = PromptLookup(sequences).draft(3, torch.zeros(6, 3))
    found = [tokens[:count] for tokens, count in zip(drafted.tolist(), counts.tolist())]
    assert found == [[4, 9, 2], [5], [], [], [6, 3], [8, 2, 9]]
    assert proposals is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"draft": "prompt"}, ["prompt"]),
        ({"draft": "prompt_lookup", "draft_tokens": 0}, ["draft_tokens", 0]),
        ({"draft": "prompt_lookup", "compile": True}, ["draft", "compile"]),
        ({"draft": "prompt_lookup", "cache_kv": False}, ["draft", "cache_kv"]),
        ({"draft": "prompt_lookup", "seq_len": 37}, [41, "max_seq_len 40"]),
        ({"draft": small_net(Decoder, num_tokens=5)}, [5, 11]),
        ({"draft": small_net(Decoder)}, ["max_seq_len 12"]),
    ],
)
def test_what_does_not_go_together_is_refused(options, named):
    with refused(ValueError, *named):
        small_ar(net={"max_seq_len": 40}).generate(random_tokens(2, 4), **{"seq_len": 10, **options})
