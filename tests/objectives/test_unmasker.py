"""What `generate` of a non-autoregressive model takes and refuses."""

import math

import pytest
import torch

from nar_scale.config import LeftToRightDecoding, ThresholdDecoding
from nar_scale.errors import ConfigError, NumericalError, UserError
from nar_scale.masking import Noise
from nar_scale.objectives.denoising import GuidedNetwork
from tests.decoding.tables import settings
from tests.errors import refused
from tests.masking.helpers import rows_of
from tests.objectives.helpers import random_tokens, small_nar

N, MASK_ID = 12, 10


def generate(wrapper, **options):
    return wrapper.generate(4, noise=Noise.of_requests(1, torch.arange(4)), return_network_calls=True, **options)


def test_a_sampler_is_given_by_name_or_by_its_settings():
    wrapper = small_nar()
    named = generate(wrapper, sampler="threshold", filter_thres=0.0, sampler_options={"threshold": 0.4})
    config = generate(wrapper, sampler=ThresholdDecoding(sampler="threshold", threshold=0.4))
    assert torch.equal(named.tokens, config.tokens)
    assert torch.equal(named.network_calls, config.network_calls)
    sampled = wrapper.sample(
        torch.full((4, N), MASK_ID), settings("threshold", threshold=0.4), Noise.of_requests(1, torch.arange(4))
    )
    assert sampled.tokens == config.tokens.tolist()
    assert sampled.network_calls == config.network_calls.tolist()


def test_prompts_are_completed():
    wrapper = small_nar()
    noise = Noise.of_requests(1, torch.arange(2))
    prompts = random_tokens(2, 5)
    masks = torch.full((2, N), MASK_ID)
    assert wrapper.generate(prompts=prompts, seq_len=0).tolist() == prompts.tolist()
    for seq_len, length in [(None, N), (3, 8)]:
        completed = wrapper.generate(prompts=prompts, seq_len=seq_len, noise=noise)
        whole = torch.cat((prompts, masks), dim=1)[:, :length]
        assert completed.tolist() == wrapper.generate(prompts=whole, noise=noise).tolist()
        assert completed[:, :5].tolist() == prompts.tolist()
    with_gap = torch.cat((prompts, masks[:, :1]), dim=1)
    assert wrapper.generate(prompts=with_gap, noise=noise).shape == (2, 6)
    assert wrapper.generate(prompts=with_gap, seq_len=2, noise=noise).shape == (2, 8)
    assert wrapper.generate(prompts=prompts[0], seq_len=2).shape == (7,)
    with refused(ValueError, "seq_len", -1):
        wrapper.generate(prompts=prompts, seq_len=-1)
    with refused(ValueError, "13 tokens", 12):
        wrapper.generate(prompts=prompts, seq_len=8)
    with refused(ValueError, "seq_len", "prompts"):
        wrapper.generate(2, seq_len=3)


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [("confidence", 3), ("entropy", 3), ("margin", 3), ("random", 3), ("remask", 3)],
)
def test_scheduled_samplers_take_the_steps_of_the_wrapper(sampler, calls):
    assert generate(small_nar(steps=3), sampler=sampler).network_calls.tolist() == [calls] * 4
    assert generate(small_nar(steps=3), sampler=sampler, steps=5).network_calls.tolist() == [5] * 4


def test_first_hitting_takes_at_most_the_steps_of_the_wrapper():
    assert generate(small_nar(steps=5), sampler="first_hitting").network_calls.max() <= 5


@pytest.mark.parametrize("sampler", ["threshold", "factor", "entropy_bound", "wino"])
def test_adaptive_samplers_take_as_many_calls_as_they_need(sampler):
    strict = {"threshold": {"threshold": 1.0}, "factor": {"factor": 1e-9}, "entropy_bound": {"entropy_bound": 0.0}}
    options = {**strict, "wino": {"reveal_threshold": 1.0}}[sampler]
    calls = generate(small_nar(steps=2), sampler=sampler, sampler_options=options, start_temperature=2.0).network_calls
    assert calls.tolist() == [N] * 4
    assert generate(small_nar(steps=2), sampler=sampler, steps=3).network_calls.max() <= 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sampler": "best"}, ["'best'", "confidence", "wino"]),
        ({"sampler": "left_to_right"}, ["left_to_right", "confidence", "wino"]),
        ({"sampler": "entropy", "sampler_options": {"threshold": 0.5}}, ["threshold", "entropy"]),
        ({"sampler": "threshold", "sampler_options": {"threshold": 0.0}}, ["threshold", "0.0"]),
        ({"sampler": "threshold", "sampler_options": {"threshold": 1.5}}, ["threshold", "1.5"]),
        ({"sampler": "wino", "sampler_options": {"keep_threshold": -1}}, ["keep_threshold", "-1"]),
        ({"sampler": "factor", "sampler_options": {"factor": 0}}, ["factor", "0"]),
        ({"sampler": "entropy_bound", "sampler_options": {"entropy_bound": -0.1}}, ["entropy_bound", "-0.1"]),
        ({"sampler": "remask", "sampler_options": {"remask_rule": "often"}}, ["remask_rule", "'often'"]),
        ({"sampler": "random", "sampler_options": {"top_p": 1.2}}, ["top_p", "1.2"]),
        ({"sampler": "random", "sampler_options": {"top_k": 0}}, ["top_k", "0"]),
        ({"start_temperature": -1.0}, ["temperature", "-1.0"]),
        ({"start_temperature": math.inf}, ["temperature", "inf"]),
        ({"start_temperature": math.nan}, ["temperature", "nan"]),
        ({"start_temperature": 1e39}, ["temperature", "1e+39"]),  # infinite in float32
        ({"sampler": "factor", "sampler_options": {"factor": math.inf}}, ["factor", "inf"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"guidance_scale": -2.0}, ["guidance", "-2.0"]),
    ],
)
def test_settings_that_a_sampler_does_not_take_are_refused(options, named):
    with refused(UserError, *named):
        small_nar(num_classes=2).generate(2, classes=torch.tensor([0, 1]), **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 0}, ["nothing", "(0, 12)"]),
        ({"prompts": torch.zeros(0, 5, dtype=torch.int64)}, ["nothing", "(0, 5)"]),
        ({"prompts": torch.zeros(0, dtype=torch.int64)}, ["nothing", "(1, 0)"]),
        ({"prompts": []}, ["prompts", "[batch, n]", "list"]),
        ({"prompts": torch.full((2, 13), 1)}, ["13", "max_seq_len", 12]),
        ({"prompts": torch.tensor([[1, 11]])}, ["id 11", "0..10"]),
        ({"prompts": torch.tensor([1, -1])}, ["id -1", "0..10"]),
        ({"filter_thres": 1.5}, ["filter_thres", "1.5"]),
        ({"guidance_scale": 2.0}, ["guidance_scale", "num_classes"]),
        ({"sampler": settings("random"), "steps": 3}, ["steps", "RandomDecoding"]),
    ],
)
def test_bad_input_is_refused(options, named):
    with refused(ValueError, *named):
        small_nar().generate(**options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("weight", ["token_emb", "attn_layers.final_norm", "to_logits"])
@pytest.mark.parametrize(
    "options", [{"sampler": "random"}, {"sampler": "confidence"}, {"sampler": "wino"}, {"start_temperature": 0.0}]
)
def test_a_network_that_is_not_finite_draws_no_tokens(options, weight, value):
    broken = small_nar()
    broken.net.get_submodule(weight).weight.data.fill_(value)
    with refused(NumericalError, "NaN"):
        broken.generate(2, **options)


@pytest.mark.parametrize("sampler", ["random", "confidence", "first_hitting", "threshold", "wino"])
def test_the_hottest_temperature_draws_every_token_but_the_mask(sampler):
    drawn = small_nar().generate(60, sampler=sampler, filter_thres=0.0, start_temperature=10_000.0)
    assert drawn.unique().tolist() == list(range(MASK_ID))


def test_samplers_of_other_models_are_refused():
    with refused(ConfigError, "left_to_right"):
        small_nar().generate(2, sampler=LeftToRightDecoding(sampler="left_to_right"))


def test_wino_needs_full_attention():
    with refused(ConfigError, "wino", "window"):
        small_nar(net={"window": 3}).generate(2, sampler="wino")


@pytest.mark.parametrize("sampler", ["confidence", "remask", "wino"])
def test_samplers_that_use_a_critic_do(sampler):
    judged = []
    wrapper = small_nar(self_token_critic=True, steps=4)
    wrapper.token_critic.register_forward_hook(lambda _, arguments, output: judged.append(arguments[0]))
    result = generate(wrapper, sampler=sampler, start_temperature=3.0)
    assert len(judged) == result.network_calls.max()
    assert all((tokens[:4] != MASK_ID).all() for tokens in judged)


def test_guidance_combines_logits():
    """The head is linear: combined embeddings have the combined logits."""
    wrapper = small_nar(num_classes=3).eval()
    wrapper.class_emb.weight.data *= 50
    tokens, classes = torch.full((2, N), MASK_ID), torch.tensor([0, 2])
    tokens[:, ::2] = random_tokens(2, 6)
    with_class = wrapper.predict(tokens, classes=classes)[0]
    without = wrapper.predict(tokens, classes=torch.full((2,), 3))[0]
    logits = without + 2.5 * (with_class - without)
    logits[..., MASK_ID] = -torch.inf
    greedy = wrapper.generate(prompts=tokens, classes=classes, guidance_scale=2.5, steps=1)
    assert torch.equal(greedy, torch.where(tokens == MASK_ID, logits.argmax(dim=-1), tokens))


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("self_cond", [False, True])
@pytest.mark.parametrize("name", ["classes", "sum_embeds"])
def test_sequences_that_are_all_alike_take_the_pass_of_one(name, self_cond, guidance):
    """From scratch the first call sees masks alone; each sequence comes out as alone, and as beside another one."""
    wrapper, sizes, samples = small_nar(num_classes=3, self_cond=self_cond).eval(), [], []
    wrapper.class_emb.weight.data *= 50
    options = {"steps": 2, "start_temperature": 4.0, "filter_thres": 0.0, "guidance_scale": guidance}
    wrapper.net.register_forward_hook(lambda _, arguments, output: sizes.append(len(arguments[0])))
    noise = Noise.of_requests(1, torch.arange(4))
    halves = 1 if guidance == 1 else 2
    values = 5 * torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(5))
    for rows, first in ([0, 0, 0, 0], 2), ([0, 0, 1, 0], 4):
        given = {"classes": torch.tensor(rows)}
        if name == "sum_embeds":
            given = {"classes": torch.zeros(4, dtype=torch.int64), "sum_embeds": values[rows]}
        sizes.clear()
        samples.append(wrapper.generate(4, noise=noise, **given, **options))
        # of one sequence there are two, since matrix products of few rows are rounded in another way
        assert sizes == [halves * first, halves * 4]
        for row in range(4):
            own = {key: value[row : row + 1] for key, value in given.items()}
            alone = wrapper.generate(1, noise=rows_of(noise, [row]), **own, **options)
            assert torch.equal(alone[0], samples[-1][row])
    alike = [0, 1, 3]
    assert torch.equal(samples[0][alike], samples[1][alike])
    assert not torch.equal(samples[0][2], samples[1][2])


@pytest.mark.parametrize("sampler", ["confidence", "random"])
def test_the_last_feed_forward_layer_sees_the_tokens_that_are_asked_about(sampler):
    """One call reveals 6 of the 11 masked tokens of each sequence, the next the others; the layers before see all."""
    wrapper, seen = small_nar().eval(), {0: [], 1: []}
    for layer, rows in seen.items():
        block = wrapper.net.attn_layers.blocks[layer]
        block.feedforward.register_forward_hook(lambda _, given, __, rows=rows: rows.append(given[0][..., 0].numel()))
    given = torch.full((8, N), MASK_ID)
    given[:, 0] = torch.arange(8)
    wrapper.generate(prompts=given, sampler=sampler, steps=2)
    assert seen[0] == [8 * N, 8 * N]
    asked = {"confidence": [8 * 11, 8 * 5], "random": [8 * 6, 8 * 5]}[sampler]
    assert seen[1] == [-(-count // 16) * 16 for count in asked]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"self_cond": True}, {"num_classes": 3}, {"net": {"depth": 1}}])
@pytest.mark.parametrize("equal", [True, False])
def test_what_decoding_reads_are_the_logits_of_the_model(options, equal):
    """Bit for bit, whichever tokens are asked about, in the first and in the second call."""
    wrapper = small_nar(**options).eval()
    tokens = random_tokens(1, N).expand(8, -1) if equal else random_tokens(8, N)
    tokens = tokens.masked_fill(torch.arange(N) % 3 == 0, MASK_ID)
    classes = torch.full((8,), 2) if "num_classes" in options else None
    network, previous = GuidedNetwork(wrapper, tokens, classes=classes), None
    for _ in range(2):
        logits, hidden = wrapper.predict(tokens, previous, classes)
        states = network.embed(tokens)
        for places in (torch.arange(16), torch.arange(5, 8 * N, 2)[:32], torch.randperm(8 * N)):
            read = network.read(states.flatten(0, 1)[places], lambda logits: logits)
            assert torch.equal(read, logits.flatten(0, 1)[places])
        previous = hidden if wrapper.self_cond else None


def test_compiled_generation_keeps_the_batch_whole(monkeypatch):
    """A batch of another size would be compiled anew."""
    wrapper, sizes = small_nar(), []
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *a, **k: sizes.append(len(a[0])) or function(*a, **k)
    )
    given = torch.full((4, N), MASK_ID)
    given[1:, :8] = random_tokens(3, 8)
    compiled = wrapper.generate(
        prompts=given, sampler="random", steps=20, noise=Noise.of_requests(1, torch.arange(4)), compile=True
    )
    assert set(sizes) == {4}
    plain = wrapper.generate(prompts=given, sampler="random", steps=20, noise=Noise.of_requests(1, torch.arange(4)))
    assert torch.equal(compiled, plain)
