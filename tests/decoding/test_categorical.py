import math

import pytest
import torch

from nar_scale.decoding.categorical import Filters, answer, draw
from nar_scale.decoding.filters import sample, top_k, top_p
from tests.masking.helpers import chi_square_excess, requests

MASK_ID = 3


def uniform(rows, seed=0):
    return requests(rows, seed).uniform()


def random_logits(rows, n, seed=0):
    return 2 * torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 257, 1000, 4096, 32_768])
def test_draws_are_those_of_the_whole_cumulative_distribution(n):
    weights = random_logits(300, n).exp()
    weights[:, 1::3] = 0
    cumulative = weights.double().cumsum(dim=1)
    u = uniform(300)
    expected = torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:])[:, 0]
    drawn = draw(weights, u)
    near = (cumulative - u[:, None] * cumulative[:, -1:]).abs().amin(dim=1) < 1e-6 * cumulative[:, -1]
    assert torch.equal(drawn[~near], expected[~near])
    assert near.sum() < 30
    assert (weights.gather(1, drawn[:, None]) > 0).all()


def test_draws_have_the_distribution_of_the_weights():
    weights = random_logits(1, 50).exp()
    drawn = draw(weights.expand(40_000, -1), uniform(40_000))
    assert chi_square_excess(drawn, weights[0].double() / weights.sum()) < 5


def test_tokens_too_unlikely_for_float32_are_drawn():
    """With 24 random bits nothing of a probability below 2^-25 could be; here such tokens have 1e-9 together."""
    weights = torch.full((2, 40_000), 1e-9 / 39_999)
    weights[:, 20_000] = 1.0
    extremes = torch.tensor([2e-10, 1 - 2e-10], dtype=torch.float64)
    drawn = draw(weights, extremes)
    assert drawn.tolist() == pytest.approx([8000, 32_000], abs=50)


def test_the_ends_of_the_unit_interval_are_drawn():
    weights = torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    assert draw(weights, torch.full((2,), 2.0**-53, dtype=torch.float64)).tolist() == [2, 1]
    assert draw(weights, torch.full((2,), 1 - 2.0**-53, dtype=torch.float64)).tolist() == [3, 1]


def by_hand(logits, k, p, temperature, u):
    logits = logits.clone()
    logits[:, MASK_ID] = -math.inf
    logits = top_k(logits, k=k) if k else logits
    logits = logits / temperature
    return sample(top_p(logits, p) if p else logits, 1.0, u)


@pytest.mark.parametrize("n", [5, 257, 3000])
@pytest.mark.parametrize("k", [None, 1, 2, 70])
@pytest.mark.parametrize("p", [None, 0.3, 0.95])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_eligible_tokens_are_those_of_the_filters(n, k, p, temperature):
    logits, u = random_logits(200, n), uniform(200)
    answers = answer(logits.clone(), Filters(MASK_ID, k, p), temperature, u)
    expected = by_hand(logits, k, p, temperature, u)
    assert (answers[:, 0].long() == expected).float().mean() > 0.99  # but for where a boundary is rounded
    assert (answers[:, 1] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("k", [None, 40])
def test_statistics_are_of_the_eligible_tokens_without_the_mask_and_the_temperature(k, temperature):
    logits, u, n = random_logits(64, 300), uniform(64), 300
    logits[:, MASK_ID] = 30.0
    masked = logits.clone()
    masked[:, MASK_ID] = -math.inf
    probabilities = top_k(masked, k=k or n).double().softmax(dim=-1)
    entropy = -(probabilities * probabilities.clamp(min=1e-300).log()).sum(dim=-1)
    two = probabilities.topk(2, dim=-1).values
    for statistic, expected in (
        ("probability", None),
        ("entropy", entropy),
        ("margin", two[:, 0] - two[:, 1]),
    ):
        answers = answer(logits.clone(), Filters(MASK_ID, k), temperature, u, statistic=statistic)
        tokens = answers[:, 0].long()
        wanted = probabilities.gather(1, tokens[:, None])[:, 0] if expected is None else expected
        torch.testing.assert_close(answers[:, 1], wanted, rtol=1e-4, atol=1e-6)
        assert (tokens != MASK_ID).all()


def test_tokens_in_place_are_not_drawn_but_asked_about():
    logits, u = random_logits(4, 9), uniform(4)
    kept = torch.tensor([0, -1, 5, -1])
    answers = answer(logits.clone(), Filters(MASK_ID, top_k=4), 1.0, u, kept, "probability")
    drawn = answer(logits.clone(), Filters(MASK_ID, top_k=4), 1.0, u, None, "probability")
    assert answers[[0, 2], 0].tolist() == [0, 5]
    assert torch.equal(answers[[1, 3]], drawn[[1, 3]])
    logits[:, MASK_ID] = -math.inf
    eligible = top_k(logits, k=4).double().softmax(dim=-1)
    torch.testing.assert_close(answers[[0, 2], 1], torch.stack((eligible[0, 0], eligible[2, 5])))


def test_each_row_has_its_temperature():
    logits, u = random_logits(90, 50), uniform(90)
    temperature = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64).repeat(30)
    together = answer(logits.clone(), Filters(MASK_ID), temperature, u)[:, 0]
    for index in range(3):
        rows = slice(index, None, 3)
        alone = answer(logits[rows].clone(), Filters(MASK_ID), float(temperature[index]), u[rows])[:, 0]
        assert torch.equal(together[rows], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_as_probable_as_the_last_eligible_token_is_eligible(dtype):
    logits = torch.tensor([[2.0, 1.0, 1.0, 9.0, 1.0, 0.5]], dtype=dtype).repeat(3000, 1)
    answers = answer(logits, Filters(MASK_ID, top_k=2), 3.0, uniform(3000))
    assert set(answers[:, 0].tolist()) == {0, 1, 2, 4}


def test_rows_do_not_depend_on_each_other():
    logits, u = random_logits(512, 5000), uniform(512)
    filters = Filters(MASK_ID, top_k=1500, top_p=0.8)
    whole = answer(logits.clone(), filters, 0.9, u, statistic="probability")
    for part in (slice(0, 16), slice(100, 131), slice(200, 512)):
        alone = answer(logits[part].clone(), filters, 0.9, u[part], statistic="probability")
        assert torch.equal(alone, whole[part])
