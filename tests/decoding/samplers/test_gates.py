"""What holds for every sampler."""

import math
from itertools import pairwise

import pytest
import torch

from nar_scale.config import UNMASKING_SAMPLERS, RemaskDecoding
from nar_scale.masking import Noise
from nar_scale.model import Encoder
from nar_scale.objectives import BlockDiffusionWrapper
from tests.decoding.tables import TableNet, decode, oracle, outcomes, settings, some_joint
from tests.masking.helpers import chi_square_excess, requests, rows_of
from tests.model.helpers import small_net
from tests.objectives.helpers import random_tokens, small_nar

N, NUM_TOKENS, MASK_ID = 6, 5, 2
STEPS = [None, 1, 4]
VARIANTS = [
    *((name, {}) for name in UNMASKING_SAMPLERS),
    ("remask", {"remask_rule": "rescale", "remask_amount": 0.7}),
    ("threshold", {"threshold": 0.3}),
    ("entropy_bound", {"entropy_bound": 1.5}),
    ("factor", {"factor": 3.0}),
    ("wino", {"reveal_threshold": 0.2, "keep_threshold": 0.6}),
    ("random", {"top_k": 2}),
    ("entropy", {"top_p": 0.9, "temperature": 5.0}),
]


def partly_masked(rows=40, n=N):
    tokens = random_tokens(rows, n, num_tokens=NUM_TOKENS - 1)
    tokens = tokens + (tokens >= MASK_ID)
    hidden = requests(rows, seed=1).uniform(n) < torch.linspace(0, 1, rows, dtype=torch.float64)[:, None]
    return tokens.masked_fill(hidden, MASK_ID)


def sure_net():
    """A table that is sure of some answers, and would answer with the mask if it could."""
    net = TableNet(N, NUM_TOKENS, seed=4)
    net.table.data *= 3
    net.table.data[..., MASK_ID] = 50.0
    return net


def doubtful(tokens):
    return torch.sin(tokens * 37.0 + torch.arange(tokens.shape[1]))


JUDGED = [(name, {"critic": doubtful}) for name in ("confidence", "remask", "wino")]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("sampler", "options"), VARIANTS + JUDGED)
def test_masks_are_filled_and_never_grow_and_what_is_given_stays(sampler, options, steps):
    tokens, net = partly_masked(), sure_net()
    left, frames = [(tokens == MASK_ID).sum(dim=1)], []

    def watch(shown, number):
        assert number == len(frames) + 1
        frames.append(shown.clone())
        left.append((shown == MASK_ID).sum(dim=1))

    result, seen = decode(tokens, net, MASK_ID, sampler, steps=steps, callback=watch, **options)
    given, total = tokens != MASK_ID, left[0]
    assert (result.tokens != MASK_ID).all()
    for frame in (*frames, result.tokens):
        assert torch.equal(frame[given], tokens[given])
    for before, after in pairwise(left):
        assert (after < before).logical_or(before == 0).all()  # one more is revealed by each call
    assert (result.network_calls <= (total if steps is None else total.clamp(max=steps))).all()
    assert torch.equal(result.network_calls, sum((count > 0).long() for count in left))
    assert len(seen) == int(result.network_calls.max())
    sizes = [len(tokens) for tokens in seen]
    assert sizes == [int((count > 0).sum()) for count in left[: len(seen)]]  # the finished have left the batch


@pytest.mark.parametrize(("sampler", "options"), VARIANTS)
def test_a_table_gives_the_same_alone_and_in_any_batch(sampler, options):
    tokens, noise, net = partly_masked(), requests(40), sure_net()
    together = decode(tokens, net, MASK_ID, sampler, noise=noise, **options)[0]
    backwards = torch.arange(39, -1, -1)
    turned = decode(tokens[backwards], net, MASK_ID, sampler, noise=rows_of(noise, backwards), **options)[0]
    assert torch.equal(turned.tokens, together.tokens[backwards])
    for row in range(0, 40, 3):
        alone = slice(row, row + 1)
        result = decode(tokens[alone], net, MASK_ID, sampler, noise=rows_of(noise, alone), **options)[0]
        assert torch.equal(result.tokens, together.tokens[alone])
        assert torch.equal(result.network_calls, together.network_calls[alone])


def real(kind, **options):
    if kind == "blocks":
        return BlockDiffusionWrapper(small_net(Encoder), mask_id=10, block_size=4, **options).eval()
    if kind == "guided":
        return small_nar(num_classes=3, prefix_length=2, **options).eval()
    return small_nar(self_cond=True, **options).eval()


@pytest.mark.parametrize("kind", ["self-conditioned", "guided", "blocks"])
@pytest.mark.parametrize(("sampler", "options"), VARIANTS)
def test_a_network_gives_the_same_alone_and_in_any_batch(sampler, options, kind):
    """Bit for bit: also the probabilities that decide, or tokens would differ somewhere among so many."""
    wrapper = real(kind)
    guided = {"guidance": 1.5} if kind == "guided" else {}
    decoding = settings(sampler, **{"top_k": 6, "temperature": 4.0, **options, **guided})
    given, rows = torch.full((9, 12), 10), torch.arange(9)
    given[:, :3] = random_tokens(9, 3)
    given[4:, 3:6] = random_tokens(5, 3)
    classes = rows % 3 if guided else None

    def sample(rows):
        noise = Noise.of_requests(7, rows)
        return wrapper.sample(given[rows], decoding, noise, classes=None if classes is None else classes[rows])

    together = sample(rows)
    for part in (rows[:1], rows[3:5], rows[8:], rows[2:9], rows.flip(0)):
        tokens, calls = sample(part)
        assert tokens == [together.tokens[row] for row in part]
        assert calls == [together.network_calls[row] for row in part]
    again = sample(rows)  # nothing of the requests before is left
    assert again == together
    other = wrapper.sample(given, decoding, Noise.of_requests(8, rows), classes=classes)
    assert other.tokens != together.tokens


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("sampler", ["random", "first_hitting"])
def test_one_token_a_call_in_random_order_draws_from_the_joint_distribution(sampler, n):
    joint, rows = some_joint(n), 20_000
    result, _ = decode(torch.full((rows, n), 3), oracle(joint), 3, sampler, noise=requests(rows, seed=n))
    assert (result.network_calls == n).all()
    assert chi_square_excess(outcomes(result.tokens), joint.flatten()) < 5


@pytest.mark.parametrize("sampler", UNMASKING_SAMPLERS)
def test_a_single_token_is_drawn_from_its_distribution(sampler):
    """The draw itself is that of the model for all, at the temperature of the call."""
    joint = some_joint(1, answers=7)
    temperature = 1.0 if sampler != "confidence" else 2.0  # half of it in the first of two calls
    steps = {"steps": 2} if sampler == "confidence" else {}
    options = {"noise": requests(20_000), "temperature": temperature, **steps}
    result, _ = decode(torch.full((20_000, 1), 7), oracle(joint), 7, sampler, **options)
    assert chi_square_excess(result.tokens, joint) < 5


def test_settings_have_the_defaults_of_the_papers():
    assert settings("threshold").threshold == 0.9
    assert settings("factor").factor == 1.0
    assert settings("entropy_bound").entropy_bound == 0.1
    assert (settings("wino").reveal_threshold, settings("wino").keep_threshold) == (0.6, 0.9)
    assert isinstance(settings("remask"), RemaskDecoding)
    assert (settings("remask").remask_rule, settings("remask").remask_amount) == ("cap", 0.008)
    assert math.isclose(settings("confidence").temperature, 1.0)
