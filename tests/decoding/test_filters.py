import math

import pytest
import torch

from nar_scale.decoding import contrastive, get_filter, min_p, sample, top_a, top_k, top_p
from nar_scale.decoding.filters import FILTERS
from nar_scale.errors import ConfigError
from tests.errors import refused
from tests.masking.helpers import chi_square_excess, requests

LOGITS = 3 * torch.randn(50, 20, generator=torch.Generator().manual_seed(0))


def kept(filtered):
    """What a filter leaves, which must be unchanged."""
    left = filtered > -math.inf
    assert torch.equal(filtered[left], LOGITS[left])
    return [set(row.nonzero().flatten().tolist()) for row in left]


def ordered(row):
    """Tokens by falling probability."""
    probabilities = row.double().softmax(dim=-1).tolist()
    return sorted(enumerate(probabilities), key=lambda pair: -pair[1])


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.11, 3), (0.01, 1), (1.0, 20)])
def test_top_k_keeps_the_ceiling_of_a_fraction(fraction, count):
    assert kept(top_k(LOGITS, fraction)) == [{token for token, _ in ordered(row)[:count]} for row in LOGITS]


def test_top_k_keeps_a_number():
    assert kept(top_k(LOGITS, k=7)) == kept(top_k(LOGITS, 0.35))
    assert torch.equal(top_k(LOGITS, k=99), LOGITS)


@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.9, 0.99])
def test_top_p_keeps_the_token_that_crosses(threshold):
    expected = []
    for row in LOGITS:
        nucleus, total = set(), 0.0
        for token, probability in ordered(row):
            if total < threshold:
                nucleus.add(token)
            total += probability
        expected.append(nucleus)
    assert kept(top_p(LOGITS, threshold)) == expected


def test_min_p_and_top_a():
    relative, squared = [], []
    for row in LOGITS:
        probabilities = ordered(row)
        largest = probabilities[0][1]
        relative.append({token for token, p in probabilities if p >= 0.05 * largest})
        squared.append({token for token, p in probabilities if p >= 0.1 * largest**3})
    assert kept(min_p(LOGITS, 0.05)) == relative
    assert kept(top_a(LOGITS, min_p_pow=3.0, min_p_ratio=0.1)) == squared


def test_filters_by_name():
    assert all(get_filter(name) is FILTERS[name] for name in ("top_k", "top_p", "min_p", "top_a"))
    assert get_filter(min_p) is min_p
    assert torch.equal(get_filter(None)(LOGITS), LOGITS)
    with refused(ConfigError, "nucleus", "top_p"):
        get_filter("nucleus")


@pytest.mark.parametrize(
    ("use", "named"),
    [
        (lambda: top_k(LOGITS, k=0), ["k of top_k", "0"]),
        (lambda: top_k(LOGITS, frac_num_tokens=-1.0), ["frac_num_tokens", "-1.0"]),
        (lambda: contrastive(LOGITS, LOGITS, alpha=2.0), ["alpha", "2.0"]),
        (lambda: contrastive(LOGITS, LOGITS, alpha=0.0), ["alpha", "0.0"]),
        (lambda: contrastive(LOGITS, LOGITS, beta=math.nan), ["beta", "nan"]),
        (lambda: top_p(LOGITS, 0.0), ["top_p", "0.0"]),
        (lambda: top_p(LOGITS, 1.5), ["top_p", "1.5"]),
        (lambda: min_p(LOGITS, 2.0), ["min_p", "2.0"]),
        (lambda: min_p(LOGITS, -0.1), ["min_p", "-0.1"]),
        (lambda: top_a(LOGITS, min_p_ratio=5.0), ["min_p_ratio", "5.0"]),
        (lambda: top_a(LOGITS, min_p_pow=0.5), ["min_p_pow", "0.5"]),
    ],
)
def test_settings_that_could_exclude_every_token_are_refused(use, named):
    with refused(ConfigError, *named):
        use()


def test_contrastive_by_formula():
    """(1 + beta) e - beta a where e >= log(alpha) + max e (arXiv:2309.09117)."""
    amateur, (alpha, beta) = LOGITS.roll(1, dims=0), (0.2, 0.7)
    result = contrastive(LOGITS, amateur, alpha=alpha, beta=beta)
    for e, a, row in zip(LOGITS.tolist(), amateur.tolist(), result.tolist()):
        for x, y, value in zip(e, a, row):
            plausible = math.exp(x) >= alpha * math.exp(max(e))
            assert value == (pytest.approx((1 + beta) * x - beta * y, abs=1e-4) if plausible else -math.inf)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_samples_follow_the_distribution(temperature):
    logits = torch.tensor([-math.inf, 1.0, 0.0, -1.0, -math.inf, 2.0, -math.inf])
    drawn = sample(logits.expand(50_000, -1), temperature, requests(50_000).uniform())
    assert chi_square_excess(drawn, (logits.double() / temperature).softmax(dim=-1)) < 5


@pytest.mark.parametrize("uniform", [2.0**-54, 1e-300, 0.5, 1 - 2.0**-53, 1.0])
def test_a_token_of_probability_0_is_never_drawn(uniform):
    for allowed in ([3], [1, 3], [0], [5], [0, 5]):
        logits = torch.full((6,), -math.inf)
        logits[allowed] = torch.randn(len(allowed))
        assert sample(logits, 1.0, torch.tensor(uniform, dtype=torch.float64)).item() in allowed


def test_rare_tokens_are_not_lost_to_rounding():
    """In float32 a token of probability 1e-9 at the end of the vocabulary could never be drawn."""
    logits = torch.tensor([0.0, math.log(1e-9)])
    uniform = torch.tensor([1 - 2e-9, 1 - 0.5e-9], dtype=torch.float64)
    assert sample(logits.expand(2, 2), 1.0, uniform).tolist() == [0, 1]


def test_no_temperature_is_greedy():
    assert torch.equal(sample(LOGITS, 0.0, torch.rand(50).double()), LOGITS.argmax(dim=-1))
