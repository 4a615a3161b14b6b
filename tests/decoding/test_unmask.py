import math
from itertools import pairwise, product

import pytest
import torch

from nar_scale.decoding import Unmasked, unmask
from nar_scale.errors import ConfigError
from nar_scale.masking import get_schedule
from tests.errors import refused
from tests.masking.helpers import chi_square_excess, requests, rows_of
from tests.model.helpers import TableNet
from tests.objectives.helpers import random_tokens, small_nar

N, NUM_TOKENS, MASK_ID = 6, 5, 2
FRACTIONS = {"linear": lambda t: 1 - t, "cosine": lambda t: math.cos(math.pi * t / 2)}


def predictor(net):
    return lambda tokens, _: net(tokens, return_logits_and_embeddings=True)


def decode(tokens, *, net=None, schedule="linear", steps=4, noise=None, **options):
    """Unmask, and return what the net saw at each call besides the result."""
    net = net or TableNet(N, NUM_TOKENS)
    noise = noise or requests(len(tokens))
    result = unmask(
        predictor(net), tokens, mask_id=MASK_ID, schedule=get_schedule(schedule), steps=steps, noise=noise, **options
    )
    return result, net.seen


def partly_masked(rows=40):
    tokens = random_tokens(rows, N, num_tokens=NUM_TOKENS - 1)
    tokens = tokens + (tokens >= MASK_ID)
    hidden = requests(rows, seed=1).uniform(N) < torch.linspace(0, 1, rows, dtype=torch.float64)[:, None]
    return tokens.masked_fill(hidden, MASK_ID)


def all_masked(rows=40, n=N):
    return torch.full((rows, n), MASK_ID)


@pytest.mark.parametrize("steps", [1, 2, 4, 6, 20])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("options", [{}, {"can_mask_prev_unmasked": True}, {"sampler": "random"}])
def test_what_every_decoding_guarantees(steps, schedule, options):
    tokens = partly_masked()
    result, seen = decode(tokens, schedule=schedule, steps=steps, **options)
    given, total = tokens != MASK_ID, (tokens == MASK_ID).sum(dim=1)
    assert (result.tokens != MASK_ID).all()
    assert torch.equal(result.tokens[given], tokens[given])
    assert (result.network_calls <= total.clamp(max=steps)).all()
    assert int(result.network_calls.max()) == len(seen)
    left = total
    for step, after in enumerate([*seen[1:], result.tokens], 1):
        scheduled = torch.tensor([math.floor(FRACTIONS[schedule](step / steps) * k + 1e-9) for k in total.tolist()])
        left = torch.minimum(scheduled, (left - 1).clamp(min=0))
        assert torch.equal((after == MASK_ID).sum(dim=1), left)


def test_nothing_to_do_needs_no_call():
    tokens = random_tokens(3, N, num_tokens=2)
    result, seen = decode(tokens)
    assert torch.equal(result.tokens, tokens)
    assert result.network_calls.tolist() == [0, 0, 0]
    assert seen == []


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_temperature_it_is_mask_predict_by_hand(schedule, again):
    net, steps = TableNet(N, NUM_TOKENS, seed=3), 4
    result, _ = decode(
        partly_masked(),
        net=net,
        schedule=schedule,
        steps=steps,
        start_temperature=0.0,
        filter_thres=0.0,
        can_mask_prev_unmasked=again,
    )
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


def revised(seen):
    """Whether a token once revealed was ever changed or masked again."""
    return any(((before != MASK_ID) & (after != before)).any() for before, after in pairwise(seen))


def test_revealed_tokens_are_masked_again_only_on_request():
    assert not revised(decode(all_masked(), steps=6)[1])
    assert revised(decode(all_masked(), steps=6, can_mask_prev_unmasked=True)[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"can_mask_prev_unmasked": True},
        {"critic": lambda tokens: torch.sin(tokens * 37.0 + torch.arange(N))},
        {"sampler": "random"},
    ],
)
def test_a_sequence_comes_out_the_same_alone_and_in_any_batch(options):
    tokens, noise = partly_masked(), requests(40)
    together = decode(tokens, noise=noise, **options)[0].tokens
    backwards = torch.arange(39, -1, -1)
    assert torch.equal(
        decode(tokens[backwards], noise=rows_of(noise, backwards), **options)[0].tokens, together[backwards]
    )
    for row in range(0, 40, 3):
        alone = slice(row, row + 1)
        assert torch.equal(decode(tokens[alone], noise=rows_of(noise, alone), **options)[0].tokens, together[alone])
    other = decode(tokens, noise=requests(40, seed=1), **options)[0].tokens
    assert not torch.equal(other, together)


def test_the_temperature_anneals_linearly():
    """With 2 steps, the first is taken at half the start temperature; a single mask is revealed in it."""
    net = TableNet(1, NUM_TOKENS)
    result, _ = decode(all_masked(20_000, 1), net=net, steps=2, start_temperature=2.0, filter_thres=0.0)
    logits = net.table[MASK_ID, 0].detach().clone()
    logits[MASK_ID] = -math.inf
    assert chi_square_excess(result.tokens, logits.softmax(dim=-1)) < 5


@pytest.mark.parametrize(("filter_thres", "count"), [(0.5, 3), (0.85, 1)])
def test_the_filter_keeps_the_likeliest(filter_thres, count):
    net = TableNet(1, NUM_TOKENS)
    result, _ = decode(all_masked(500, 1), net=net, steps=2, start_temperature=50.0, filter_thres=filter_thres)
    logits = net.table[MASK_ID, 0].detach().clone()
    logits[MASK_ID] = -math.inf
    assert set(result.tokens.flatten().tolist()) == set(logits.topk(count).indices.tolist())


def oracle(joint):
    """A net that holds the exact conditionals p(token | visible tokens) of a joint distribution `[3, 3]` and so on."""
    n, answers = joint.ndim, joint.shape[0]
    net = TableNet(n, answers + 1)
    for visible in product(range(answers + 1), repeat=n):
        given = tuple(slice(None) if token == answers else slice(token, token + 1) for token in visible)
        for place in range(n):
            others = [axis for axis in range(n) if axis != place]
            conditional = joint[given].sum(dim=others) if others else joint[given]
            if visible[place] == answers:
                net.table.data[net.code(torch.tensor(visible)), place, :answers] = conditional.log().float()
    return net


@pytest.mark.parametrize("n", [2, 3])
def test_one_token_a_step_in_random_order_reproduces_the_joint(n):
    joint = torch.rand(*[3] * n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 2
    joint /= joint.sum()
    tokens = torch.full((20_000, n), 3)
    result = unmask(
        predictor(oracle(joint)),
        tokens,
        mask_id=3,
        schedule=get_schedule("linear"),
        steps=n,
        noise=requests(20_000),
        sampler="random",
        filter_thres=0.0,
    )
    assert (result.network_calls == n).all()
    assert chi_square_excess((result.tokens * 3 ** torch.arange(n - 1, -1, -1)).sum(dim=1), joint.flatten()) < 5


def test_the_random_sampler_reveals_any_place_alike():
    _, seen = decode(all_masked(6000), steps=N, sampler="random")
    first = (seen[1] != MASK_ID).nonzero()
    assert torch.equal(first[:, 0], torch.arange(6000))
    assert chi_square_excess(first[:, 1], torch.full((N,), 1 / N)) < 5


def test_an_unknown_sampler_is_refused():
    with refused(ConfigError, "'entropy'", "confidence", "random"):
        decode(all_masked(), sampler="entropy")


def test_a_critic_decides_what_is_kept():
    def doubts_the_end(tokens):
        return torch.arange(N).expand(tokens.shape).float()

    _, seen = decode(all_masked(), steps=N, critic=doubts_the_end, noise_level_scale=0.0)
    for call, tokens in enumerate(seen):
        assert torch.equal(tokens == MASK_ID, torch.arange(N).expand_as(tokens) >= call)
    _, noisy = decode(all_masked(), steps=N, critic=doubts_the_end, noise_level_scale=100.0)
    assert not torch.equal(noisy[1] == MASK_ID, seen[1] == MASK_ID)


def test_a_schedule_that_almost_ends_leaves_no_mask():
    tokens = torch.full((1, 3000), 2)
    result = unmask(
        lambda tokens, _: (torch.zeros(*tokens.shape, 3), tokens),
        tokens,
        mask_id=2,
        schedule=get_schedule(lambda t: 1 - 0.9995 * t),
        steps=4,
        noise=requests(1),
    )
    assert (result.tokens != 2).all()


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
    filled = wrapper.generate(prompt=prompt)
    assert torch.equal(filled[prompt != 10], prompt[prompt != 10])
    assert (filled != 10).all()
    assert wrapper.generate(prompt=prompt[0]).shape == (12,)


def test_self_conditioning_feeds_back_the_embeddings_of_the_call_before():
    wrapper, conditions, embeddings = small_nar(self_cond=True, steps=3), [], []
    wrapper.to_self_cond.register_forward_pre_hook(lambda _, arguments: conditions.append(arguments[0]))
    wrapper.net.attn_layers.register_forward_hook(lambda _, arguments, output: embeddings.append(output[0]))
    wrapper.generate(batch_size=2)
    assert torch.equal(conditions[0], wrapper.null_embed.expand(2, 12, -1))
    assert torch.equal(conditions[1], embeddings[0])
    assert torch.equal(conditions[2], embeddings[1])
