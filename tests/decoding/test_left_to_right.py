import math
from itertools import combinations, product

import pytest
import torch

from nar_scale.decoding import eligible, predictor, top_k, top_p
from nar_scale.errors import ConfigError, NumericalError
from nar_scale.model import Decoder
from nar_scale.objectives import AutoregressiveWrapper
from tests.errors import refused
from tests.masking.helpers import chi_square_excess, requests, rows_of
from tests.model.helpers import TableNet, small_net
from tests.objectives.helpers import random_tokens, small_ar

LENGTHS = [5, 1, 9, 3, 5]
POSITIONS = [{}, {"rotary": False}]


def prompts_of(lengths=LENGTHS):
    return [tokens[:length] for tokens, length in zip(random_tokens(len(lengths), 20), lengths)]


def next_logits(net, tokens):
    """Without cache, padding or batch: what the net says of the last `max_seq_len` tokens `[n]`."""
    with torch.no_grad():
        return net(tokens[None, -net.max_seq_len :])[0, -1]


def greedy_by_hand(choose, tokens, seq_len):
    for _ in range(seq_len):
        tokens = torch.cat((tokens, choose(tokens).argmax()[None]))
    return tokens


@pytest.mark.parametrize("options", POSITIONS)
@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("length", [1, 7, 12, 15])
def test_greedy_equals_recomputation_even_past_max_seq_len(options, cache_kv, length):
    wrapper, prompts = small_ar(net=options), random_tokens(3, length)
    generated = wrapper.generate(prompts, 10, temperature=0.0, cache_kv=cache_kv)
    for prompt, ours in zip(prompts, generated):
        assert torch.equal(ours, greedy_by_hand(lambda tokens: next_logits(wrapper.net, tokens), prompt, 10))


@pytest.mark.parametrize("options", POSITIONS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_ragged_prompts_come_out_as_each_alone(options, temperature):
    wrapper, prompts, noise = small_ar(net=options), prompts_of(), requests(5)
    settings = {"seq_len": 9, "temperature": temperature, "filter_logits_fn": "top_p"}
    together = wrapper.generate(prompts, noise=noise, **settings)
    assert together.shape == (5, 9)
    for row, prompt in enumerate(prompts):
        alone = wrapper.generate(prompt, noise=rows_of(noise, slice(row, row + 1)), return_prompt=False, **settings)
        assert torch.equal(alone, together[row])
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=7)
    by_lengths = wrapper.generate(padded, prompt_lens=torch.tensor(LENGTHS), noise=noise, **settings)
    assert torch.equal(by_lengths, together)


def test_the_cache_changes_no_sample():
    wrapper, prompts, noise = small_ar(), prompts_of(), requests(5)
    cached, recomputed = (wrapper.generate(prompts, 20, noise=noise, cache_kv=use) for use in (True, False))
    assert torch.equal(cached, recomputed)


def test_noise_alone_decides():
    wrapper, prompt = small_ar().train(), random_tokens(4, 3)
    state = torch.get_rng_state()
    first = wrapper.generate(prompt, 8, noise=requests(4), temperature=2.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert wrapper.training
    assert torch.equal(wrapper.generate(prompt, 8, noise=requests(4), temperature=2.0), first)
    assert not torch.equal(wrapper.generate(prompt, 8, noise=requests(4, seed=1), temperature=2.0), first)
    state = torch.get_rng_state()
    wrapper.beam_search(prompt, 4, noise=requests(4), stochastic=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes():
    wrapper, prompt = small_ar(), random_tokens(2, 3)
    assert wrapper.generate(prompt, 4).shape == (2, 7)
    assert torch.equal(wrapper.generate(prompt, 4)[:, :3], prompt)
    assert wrapper.generate(prompt[0], 4).shape == (7,)
    assert wrapper.generate(prompt, 4, return_prompt=False).shape == (2, 4)
    assert wrapper.generate([prompt[0], prompt[1, :1]], 4).shape == (2, 4)
    assert wrapper.beam_search(prompt, 4).shape == (2, 4)
    assert wrapper.beam_search(prompt[0], 4).shape == (4,)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_known_joint_is_reproduced(temperature):
    net = TableNet(4, 3, causal=True)
    drawn = AutoregressiveWrapper(net).generate(
        torch.zeros(30_000, 1, dtype=torch.int64),
        3,
        temperature=temperature,
        filter_logits_fn=None,
        cache_kv=False,
        return_prompt=False,
        noise=requests(30_000),
    )
    conditionals = (net.table.detach().double() / temperature).softmax(dim=-1)
    joint = []
    for outcome in product(range(3), repeat=3):
        codes = net.code(torch.tensor((0, *outcome)))
        joint.append(math.prod(float(conditionals[codes[i], i, token]) for i, token in enumerate(outcome)))
    assert sum(joint) == pytest.approx(1)
    assert chi_square_excess((drawn * torch.tensor([9, 3, 1])).sum(dim=1), torch.tensor(joint)) < 5


@pytest.mark.parametrize("count", [1, 2])
def test_contrastive_decoding_by_formula(count):
    wrapper, prompt = small_ar(), random_tokens(2, 3)
    amateurs = [small_net(Decoder, depth=depth, heads=4) for depth in (1, 3)][:count]
    settings = [{"alpha": 0.05, "beta": 0.8}, {"alpha": 0.1, "beta": 0.3}][:count]

    def choose(tokens):
        logits = next_logits(wrapper.net, tokens)
        for amateur, each in zip(amateurs, settings):
            plausible = logits >= math.log(each["alpha"]) + logits.max()
            logits = (1 + each["beta"]) * logits - each["beta"] * next_logits(amateur, tokens)
            logits[~plausible] = -math.inf
        return logits

    wrapped = [AutoregressiveWrapper(amateur) for amateur in amateurs]
    generated = wrapper.generate(
        prompt,
        12,
        temperature=0.0,
        amateur_model=wrapped if count > 1 else wrapped[0],
        contrastive_decode_kwargs=settings if count > 1 else settings[0],
    )
    for row, ours in zip(prompt, generated):
        assert torch.equal(ours, greedy_by_hand(choose, row, 12))
    assert not torch.equal(generated, wrapper.generate(prompt, 12, temperature=0.0))


def test_each_amateur_needs_its_settings():
    with refused(ValueError, 2, "1 contrastive_decode_kwargs"):
        small_ar().generate(
            torch.tensor([[1]]), 2, amateur_model=[small_net(Decoder)] * 2, contrastive_decode_kwargs=[{}]
        )


def test_after_the_end_token_comes_padding():
    wrapper, prompts = small_ar(pad_value=9), prompts_of()
    free = wrapper.generate(prompts, 11, temperature=0.0)
    eos = int(free[0, 4])
    ended = wrapper.generate(prompts, 11, temperature=0.0, eos_token=eos)
    for before, after in zip(free.tolist(), ended.tolist()):
        if eos in before:
            stop = before.index(eos) + 1
            before = before[:stop] + [9] * (11 - stop)
        assert after == before[: len(after)]
    assert wrapper.generate(prompts[:1], 11, temperature=0.0, eos_token=eos).shape == (
        1,
        free[0].tolist().index(eos) + 1,
    )


def all_continuations(net, prompt, seq_len, eos=None, pad=0):
    """Every continuation with its log-probability, best first."""
    found = {(): 0.0}
    for _ in range(seq_len):
        longer = {}
        for tokens, score in found.items():
            if eos in tokens:
                longer[(*tokens, pad)] = score
                continue
            log_probs = (
                next_logits(net, torch.cat((prompt, torch.tensor(tokens, dtype=torch.int64)))).double().log_softmax(-1)
            )
            longer.update({(*tokens, token): score + float(log_probs[token]) for token in range(net.num_tokens)})
        found = longer
    return sorted(found.items(), key=lambda pair: -pair[1])


@pytest.mark.parametrize("eos", [None, 4])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_enough_beams_find_the_likeliest_continuations(eos, cache_kv):
    net = small_net(Decoder, num_tokens=6)
    prompts = [tokens % 6 for tokens in prompts_of([2, 3, 1, 3, 4, 12])]
    tokens, scores = AutoregressiveWrapper(net, pad_value=0).beam_search(
        prompts, 2, beams=6, return_beams_and_scores=True, eos_token=eos, cache_kv=cache_kv
    )
    for prompt, beams, their_scores in zip(prompts, tokens, scores):
        best = all_continuations(net, prompt, 2, eos)[:6]
        assert [tuple(beam) for beam in beams.tolist()] == [continuation for continuation, _ in best]
        assert their_scores.tolist() == pytest.approx([score for _, score in best], abs=1e-4)


def test_one_beam_is_greedy():
    wrapper, prompts = small_ar(), prompts_of()
    greedy = wrapper.generate(prompts, 11, temperature=0.0)
    assert torch.equal(wrapper.beam_search(prompts, 11, beams=1), greedy)
    eos = int(greedy[0, 4])
    ended = wrapper.generate(prompts, 11, temperature=0.0, eos_token=eos)
    assert torch.equal(wrapper.beam_search(prompts, 11, beams=1, eos_token=eos), ended)


@pytest.mark.parametrize("options", POSITIONS)
def test_beams_of_ragged_prompts_come_out_as_each_alone(options):
    wrapper, prompts = small_ar(net=options), prompts_of()
    tokens, scores = wrapper.beam_search(prompts, 9, beams=3, return_beams_and_scores=True)
    for prompt, beams, their_scores in zip(prompts, tokens, scores):
        alone, alone_scores = wrapper.beam_search(prompt, 9, beams=3, return_beams_and_scores=True)
        assert torch.equal(alone, beams)
        torch.testing.assert_close(alone_scores, their_scores, rtol=1e-5, atol=1e-5)
        for beam, score in zip(beams, their_scores.tolist()):
            text = torch.cat((prompt, beam))
            steps = [
                next_logits(wrapper.net, text[:end]).double().log_softmax(-1)[text[end]]
                for end in range(len(prompt), len(text))
            ]
            assert score == pytest.approx(float(sum(steps)), abs=1e-4)


@pytest.mark.parametrize("seq_len", [1, 2, 3])
def test_stochastic_beams_are_drawn_without_replacement(seq_len):
    net, rows = TableNet(seq_len + 1, 3, causal=True), 20_000
    drawn, _ = AutoregressiveWrapper(net).beam_search(
        torch.zeros(rows, 1, dtype=torch.int64),
        seq_len,
        beams=2,
        stochastic=True,
        return_beams_and_scores=True,
        cache_kv=False,
        noise=requests(rows),
    )
    p = {tokens: math.exp(score) for tokens, score in all_continuations(net, torch.tensor([0]), seq_len)}
    pairs = list(combinations(sorted(p), 2))
    likely = [p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in pairs]
    numbers = torch.tensor([pairs.index(tuple(sorted(map(tuple, beams)))) for beams in drawn.tolist()])
    assert chi_square_excess(numbers, torch.tensor(likely)) < 5


def test_more_beams_than_tokens_are_refused():
    with refused(ConfigError, "12 beams", "11 tokens"):
        small_ar().beam_search(torch.tensor([[1]]), 2, beams=12)


def test_a_context_conditions_generation_and_follows_its_beams():
    net = small_net(Decoder, cross_attend=True, dim_context=5)
    wrapper = AutoregressiveWrapper(net)
    context = 20 * torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])
    prompts = torch.ones(3, 1, dtype=torch.int64)
    greedy = wrapper.generate(prompts, 8, temperature=0.0, context=context, context_mask=mask)
    assert len(greedy.unique(dim=0)) == 3
    for row in range(3):
        rows = slice(row, row + 1)
        alone = wrapper.generate(
            prompts[rows], 8, temperature=0.0, context=context[rows], context_mask=mask[rows], cache_kv=False
        )
        assert torch.equal(alone, greedy[rows])
    beams = wrapper.beam_search(prompts, 6, beams=3, context=context, context_mask=mask)
    for row in range(3):
        rows = slice(row, row + 1)
        alone = wrapper.beam_search(prompts[rows], 6, beams=3, context=context[rows], context_mask=mask[rows])
        assert torch.equal(alone, beams[rows])


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_sequences_that_have_ended_leave_the_batch_and_change_nothing(monkeypatch, compile, temperature):
    """Each comes out as alone, and the network sees fewer and fewer of them unless it is compiled for their number."""
    monkeypatch.setattr(predictor, "compiled_step", lambda step, on_gpu: step)
    wrapper, prompts, noise = small_ar(net={"max_seq_len": 60}), prompts_of([5, 1, 9, 3, 5, 2, 7, 4]), requests(8)
    settings = {"seq_len": 40, "temperature": temperature, "filter_logits_fn": None, "compile": compile}
    free = wrapper.generate(prompts, noise=noise, **settings)
    eos = int(free[:, 3:].flatten().mode().values)
    seen = []
    wrapper.net.register_forward_pre_hook(lambda net, arguments: seen.append(len(arguments[0])))
    ours, calls = wrapper.generate(prompts, noise=noise, eos_token=eos, return_network_calls=True, **settings)
    for row, alone in enumerate(free.tolist()):
        length = alone.index(eos) + 1 if eos in alone else 40
        assert ours[row, :length].tolist() == alone[:length]
        assert not ours[row, length:].any()
        assert int(calls[row]) == length
    sizes = sorted(set(seen), reverse=True)
    assert seen == sorted(seen, reverse=True)
    assert sizes == [8] if compile else len(sizes) > 2


def test_a_callback_sees_the_tokens_of_every_step():
    wrapper, prompts, seen = small_ar(), prompts_of(), []
    ours = wrapper.generate(
        prompts, 6, noise=requests(5), callback=lambda *step: seen.append((step[0].clone(), step[1]))
    )
    assert [call for _, call in seen] == [1, 2, 3, 4, 5, 6]
    for tokens, call in seen:
        assert torch.equal(tokens, ours[:, :call])


def test_several_filters_apply_one_after_another():
    wrapper, prompts, noise = small_ar(), random_tokens(50, 3), requests(50)
    settings = {"seq_len": 6, "noise": noise, "temperature": 2.0}
    both = wrapper.generate(prompts, filter_logits_fn=eligible(3, 0.5), **settings)
    by_hand = wrapper.generate(prompts, filter_logits_fn=lambda logits: top_p(top_k(logits, k=3), 0.5), **settings)
    for ours in (both, by_hand):
        logits = wrapper.net(ours[:, :-1])[:, 2:]
        kept = top_p(top_k(logits, k=3), 0.5).gather(2, ours[:, 3:, None])
        assert kept.isfinite().all()
    assert torch.equal(
        wrapper.generate(prompts, filter_logits_fn=eligible(None, None), **settings),
        wrapper.generate(prompts, filter_logits_fn=None, **settings),
    )


@pytest.mark.parametrize(
    ("prompts", "options", "named"),
    [
        ([], {}, ["list of prompts is empty"]),
        (torch.zeros(0, 3, dtype=torch.int64), {}, ["no prompts"]),
        (torch.zeros(2, 0, dtype=torch.int64), {}, ["prompt is empty"]),
        ([torch.tensor([1]), torch.tensor([], dtype=torch.int64)], {}, ["prompt is empty"]),
        (torch.tensor([[1, 11]]), {}, [11, "0..10"]),
        ([torch.tensor([1]), torch.tensor([2, -1])], {}, [-1, "0..10"]),
        (torch.tensor([[1.0]]), {}, ["float32"]),
        (torch.tensor([[[1]]]), {}, [[1, 1, 1]]),
        (torch.tensor([[1, 2]]), {"prompt_lens": torch.tensor([3])}, ["prompt_lens", [3]]),
        (torch.tensor([[1, 2]]), {"prompt_lens": torch.tensor([1, 1])}, ["prompt_lens", [1, 1]]),
        ([torch.tensor([1])], {"prompt_lens": torch.tensor([1])}, ["prompt_lens"]),
        (torch.tensor([[1]]), {"eos_token": 11}, ["eos_token", 11, "0..10"]),
        (torch.tensor([[1]]), {"temperature": -0.5}, ["temperature", -0.5]),
        (torch.tensor([[1]]), {"temperature": math.nan}, ["temperature", "nan"]),
        (torch.tensor([[1]]), {"seq_len": -1}, ["seq_len", -1]),
        (torch.tensor([[1]]), {"filter_logits_fn": None, "filter_kwargs": {"k": 3}}, ["filter_kwargs", "k"]),
        (torch.tensor([[1]]), {"filter_logits_fn": eligible(3, None), "filter_kwargs": {"k": 3}}, ["filter_kwargs"]),
    ],
)
def test_prompts_and_options_that_make_no_sense_are_refused(prompts, options, named):
    with refused(ValueError, *named):
        small_ar().generate(prompts, **{"seq_len": 2, **options})


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("weight", ["token_emb", "attn_layers.final_norm", "to_logits"])
@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {}, {"draft": "prompt_lookup"}, {"filter_logits_fn": "top_k"}]
)
def test_a_network_that_is_not_finite_draws_no_tokens(options, weight, value):
    broken = small_ar()
    broken.net.get_submodule(weight).weight.data.fill_(value)
    with refused(NumericalError, "NaN"):
        broken.generate(torch.tensor([[1]]), 2, **options)
    with refused(NumericalError, "NaN"):
        broken.beam_search(torch.tensor([[1]]), 2)


def test_padding_of_prompts_may_be_any_number():
    wrapper, prompts = small_ar(), torch.tensor([[1, 2, 3], [4, -100, 999]])
    ours = wrapper.generate(prompts, 5, temperature=0.0, prompt_lens=torch.tensor([3, 1]))
    assert torch.equal(ours, wrapper.generate([prompts[0], prompts[1, :1]], 5, temperature=0.0))
