import math
from itertools import pairwise

import pytest
import torch

from nar_scale.decoding import Unmasked
from nar_scale.objectives import NonAutoregressiveWrapper
from tests.decoding.tables import decode
from tests.masking.helpers import chi_square_excess, requests
from tests.model.helpers import TableNet
from tests.objectives.helpers import random_tokens, small_nar

N, NUM_TOKENS, MASK_ID = 6, 5, 2
FRACTIONS = {"linear": lambda t: 1 - t, "cosine": lambda t: math.cos(math.pi * t / 2)}


def partly_masked(rows=40):
    tokens = random_tokens(rows, N, num_tokens=NUM_TOKENS - 1)
    tokens = tokens + (tokens >= MASK_ID)
    hidden = requests(rows, seed=1).uniform(N) < torch.linspace(0, 1, rows, dtype=torch.float64)[:, None]
    return tokens.masked_fill(hidden, MASK_ID)


def all_masked(rows=40, n=N):
    return torch.full((rows, n), MASK_ID)


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 20])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [("confidence", {}), ("confidence", {"can_mask_revealed": True}), ("random", {}), ("entropy", {}), ("margin", {})],
)
def test_as_many_tokens_stay_masked_as_the_schedule_says(sampler, options, schedule, steps):
    tokens, counts = partly_masked(), []
    total = (tokens == MASK_ID).sum(dim=1)
    decode(
        tokens,
        TableNet(N, NUM_TOKENS),
        MASK_ID,
        sampler,
        schedule=schedule,
        steps=steps,
        callback=lambda shown, number: counts.append((shown == MASK_ID).sum(dim=1)),
        **options,
    )
    left = total
    for step, count in enumerate(counts, 1):
        scheduled = torch.tensor([math.floor(FRACTIONS[schedule](step / steps) * k + 1e-9) for k in total.tolist()])
        left = torch.minimum(scheduled, (left - 1).clamp(min=0))
        assert torch.equal(count, left)


@pytest.mark.parametrize("sampler", ["confidence", "random", "entropy", "margin"])
def test_without_steps_each_call_reveals_one_token(sampler):
    counts = []
    decode(
        all_masked(),
        TableNet(N, NUM_TOKENS),
        MASK_ID,
        sampler,
        schedule="cosine",
        steps=None,
        callback=lambda shown, number: counts.append((shown == MASK_ID).sum(dim=1).tolist()),
    )
    assert counts == [[left] * 40 for left in range(N - 1, -1, -1)]


def test_nothing_to_do_needs_no_call():
    tokens = random_tokens(3, N, num_tokens=2)
    result, seen = decode(tokens, TableNet(N, NUM_TOKENS), MASK_ID, "confidence")
    assert torch.equal(result.tokens, tokens)
    assert result.network_calls.tolist() == [0, 0, 0]
    assert seen == []


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_temperature_it_is_mask_predict_by_hand(schedule, again):
    net, steps = TableNet(N, NUM_TOKENS, seed=3), 4
    settings = {"schedule": schedule, "steps": steps, "temperature": 0.0, "can_mask_revealed": again}
    result, _ = decode(partly_masked(), net, MASK_ID, "confidence", **settings)
    for tokens, ours in zip(partly_masked(), result.tokens):
        generated = masked = (tokens == MASK_ID).nonzero().flatten().tolist()
        for step in range(1, steps + 1):
            if not masked:
                break
            logits = net.table[net.code(tokens)].detach().clone()
            logits[:, MASK_ID] = -math.inf
            tokens[masked] = logits.argmax(dim=-1)[masked]
            sure = logits.softmax(dim=-1)[torch.arange(N), tokens]
            left = min(math.floor(FRACTIONS[schedule](step / steps) * len(generated) + 1e-9), len(masked) - 1)
            masked = sorted(generated if again else masked, key=lambda place: sure[place])[:left]
            tokens[masked] = MASK_ID
        assert torch.equal(ours, tokens)


@pytest.mark.parametrize("again", [False, True])
def test_revealed_tokens_are_masked_again_only_on_request(again):
    _, seen = decode(all_masked(), TableNet(N, NUM_TOKENS), MASK_ID, "confidence", steps=6, can_mask_revealed=again)
    revised = any(((before != MASK_ID) & (after != before)).any() for before, after in pairwise(seen))
    assert revised == again


@pytest.mark.parametrize("steps", [2, None])
def test_the_temperature_anneals_linearly(steps):
    """With 2 steps, the first is taken at half the start temperature, and so it is with two tokens, one a step."""
    net = TableNet(2, NUM_TOKENS)
    frames = []
    decode(
        all_masked(20_000, 2),
        net,
        MASK_ID,
        "confidence",
        steps=steps,
        temperature=2.0,
        critic=lambda tokens: torch.tensor([0.0, 1.0]).expand(tokens.shape),
        critic_noise=0.0,
        callback=lambda shown, number: frames.append(shown.clone()),
    )
    logits = net.table[net.code(torch.tensor([MASK_ID, MASK_ID])), 0].detach().clone()
    logits[MASK_ID] = -math.inf
    assert chi_square_excess(frames[0][:, 0], logits.softmax(dim=-1)) < 5
    for first in set(frames[0][:, 0].tolist()):
        last = net.table[net.code(torch.tensor([first, MASK_ID])), 1].detach().clone()
        last[MASK_ID] = -math.inf
        assert (frames[1][frames[0][:, 0] == first, 1] == last.argmax()).all()


@pytest.mark.parametrize("top_k", [3, 1])
def test_the_filter_keeps_the_likeliest(top_k):
    net = TableNet(1, NUM_TOKENS)
    result, _ = decode(all_masked(500, 1), net, MASK_ID, "confidence", steps=2, temperature=50.0, top_k=top_k)
    logits = net.table[MASK_ID, 0].detach().clone()
    logits[MASK_ID] = -math.inf
    assert set(result.tokens.flatten().tolist()) == set(logits.topk(top_k).indices.tolist())


def test_the_random_sampler_reveals_any_place_alike():
    _, seen = decode(all_masked(6000), TableNet(N, NUM_TOKENS), MASK_ID, "random")
    first = (seen[1] != MASK_ID).nonzero()
    assert torch.equal(first[:, 0], torch.arange(6000))
    assert chi_square_excess(first[:, 1], torch.full((N,), 1 / N)) < 5


def test_a_critic_decides_what_is_kept():
    def doubts_the_end(tokens):
        return torch.arange(N).expand(tokens.shape).float()

    net = TableNet(N, NUM_TOKENS)
    options = {"steps": N, "critic": doubts_the_end}
    _, seen = decode(all_masked(), net, MASK_ID, "confidence", critic_noise=0.0, **options)
    for call, tokens in enumerate(seen):
        assert torch.equal(tokens == MASK_ID, torch.arange(N).expand_as(tokens) >= call)
    _, noisy = decode(all_masked(), net, MASK_ID, "confidence", critic_noise=100.0, **options)
    assert not torch.equal(noisy[1] == MASK_ID, seen[1] == MASK_ID)


def test_a_schedule_that_almost_ends_leaves_no_mask():
    wrapper = small_nar(net={"max_seq_len": 3000, "depth": 1}, schedule=lambda t: 1 - 0.9995 * t, steps=4)
    assert isinstance(wrapper, NonAutoregressiveWrapper)
    assert (wrapper.generate() != 10).all()


CRITICS = [{}, {"self_cond": True}, {"self_token_critic": True}, {"can_mask_prev_unmasked": True}]


@pytest.mark.parametrize("options", CRITICS)
def test_generate_of_the_wrapper(options):
    wrapper = small_nar(steps=5, **options).train()
    state, noise = torch.get_rng_state(), requests(4)
    generated = wrapper.generate(batch_size=4, noise=noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert wrapper.training
    assert generated.shape == (4, 12)
    assert generated.dtype == torch.int64
    assert (generated != 10).all()
    assert torch.equal(wrapper.generate(batch_size=4, noise=noise), generated)
    assert wrapper.generate().shape == (12,)
    again = wrapper.generate(batch_size=4, noise=noise, return_network_calls=True, steps=3)
    assert isinstance(again, Unmasked)
    assert again.network_calls.tolist() == [3] * 4


def test_generate_is_repeated_by_torchs_seed():
    wrapper, results = small_nar(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(wrapper.generate(batch_size=3, start_temperature=3.0))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_infilling_keeps_what_is_given():
    wrapper, prompt = small_nar(), random_tokens(3, 12)
    prompt[:, 3:9] = 10
    filled = wrapper.generate(prompts=prompt)
    assert torch.equal(filled[prompt != 10], prompt[prompt != 10])
    assert (filled != 10).all()
    assert wrapper.generate(prompts=prompt[0]).shape == (12,)


def test_self_conditioning_feeds_back_the_embeddings_of_the_call_before():
    wrapper, conditions, embeddings = small_nar(self_cond=True, steps=3), [], []
    wrapper.to_self_cond.register_forward_pre_hook(lambda _, arguments: conditions.append(arguments[0]))
    wrapper.net.attn_layers.register_forward_hook(lambda _, arguments, output: embeddings.append(output[0]))
    wrapper.generate(batch_size=2)
    assert torch.equal(conditions[0], wrapper.null_embed.expand(2, 12, -1))
    assert torch.equal(conditions[1], embeddings[0])
    assert torch.equal(conditions[2], embeddings[1])
