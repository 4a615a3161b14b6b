import math

import pytest
import torch

from nar_scale.masking import Noise, hash_counters
from nar_scale.masking.noise import _GOLDEN, mix, to_gumbel, to_uniform

from .helpers import chi_square_excess, requests, rows_of

UNSIGNED = 2**64


def mix_by_hand(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % UNSIGNED
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % UNSIGNED
    return x ^ (x >> 31)


def samples(seed, epochs, ids, positions):
    return Noise.of_samples(seed, *(torch.tensor(x) for x in (epochs, ids, positions)))


def test_the_mixer_is_splitmix64():
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = 1234567 + torch.arange(1, 6) * _GOLDEN
    assert [x % UNSIGNED for x in mix(states).tolist()] == published


def test_the_hash_equals_one_in_unbounded_integers():
    golden, state = 0x9E3779B97F4A7C15, 0
    for counter in (3, 10**12, -1 % UNSIGNED):
        state = mix_by_hand((state + golden + mix_by_hand((counter + golden) % UNSIGNED)) % UNSIGNED)
    assert int(hash_counters(3, torch.tensor(10**12), -1)) % UNSIGNED == state


GOLDEN_BITS = [[2986445328035296030, 1034027111646915897], [-1334768749861121133, -1066986907829365733]]
GOLDEN_DERIVED = [[-4156194839710334327], [5500814960563432193]]
GOLDEN_PROGRESS = [0.8116781243544446, 0.7194051436649687]


def test_golden_values():
    """If these change, a resumed run or a repeated evaluation sees other masks than before."""
    noise = samples(7, [0, 2], [5, 10**9], [5, 2 * 10**10])
    assert noise.bits(2).tolist() == GOLDEN_BITS
    assert noise.derive(3).bits(1).tolist() == GOLDEN_DERIVED
    torch.testing.assert_close(noise.progress(), torch.tensor(GOLDEN_PROGRESS, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_sequence_has_the_same_noise_alone_and_in_any_batch():
    noise, order = requests(50), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for draw in (lambda x: x.derive(4).bits(6, 2), lambda x: x.gumbel(3), lambda x: x.progress()):
        assert torch.equal(draw(rows_of(noise, order)), draw(noise)[order])
        assert torch.equal(draw(rows_of(noise, slice(17, 18))), draw(noise)[17:18])


def test_longer_draws_begin_like_shorter_ones():
    assert torch.equal(requests(4).bits(100)[:, :7], requests(4).bits(7))


def test_noise_differs_by_seed_epoch_sample_stream_and_place():
    variants = [
        samples(*of).bits(4) for of in ((0, [0], [1], [1]), (1, [0], [1], [1]), (0, [1], [1], [1]), (0, [0], [2], [1]))
    ]
    variants += [samples(0, [0], [1], [1]).derive(stream).bits(4) for stream in (0, 1)]
    assert len(set(torch.cat(variants).flatten().tolist())) == 4 * 6


def test_the_place_in_the_stream_moves_the_stratum_alone():
    here, there = samples(0, [0], [1], [1]), samples(0, [0], [1], [2])
    assert torch.equal(here.bits(4), there.bits(4))
    assert here.progress() != there.progress()


def test_uniform_numbers_are_uniform_and_uncorrelated():
    draws = requests(1000).uniform(200)
    assert chi_square_excess((draws * 100).long(), torch.full((100,), 0.01)) < 5
    centred = (draws - 0.5) * math.sqrt(12)
    for product in (
        centred[1:] * centred[:-1],
        centred[:, 1:] * centred[:, :-1],
        centred * requests(1000, 1).uniform(200),
    ):
        assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())
    bits = (requests(1000).bits(200)[..., None] >> torch.arange(64)) & 1
    assert float((bits.double().mean(dim=(0, 1)) - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(200_000)


def test_gumbel_moments():
    draws = requests(1000).gumbel(200)
    assert float(draws.mean()) == pytest.approx(0.57722, abs=0.015)
    assert float(draws.var()) == pytest.approx(math.pi**2 / 6, rel=0.03)


@pytest.mark.parametrize("bits", [0, 1, -1, -(2**63), 2**63 - 1])
def test_extreme_bits_stay_inside_the_open_interval(bits):
    uniform = to_uniform(torch.tensor(bits))
    assert 0 < uniform < 1
    assert to_gumbel(torch.tensor(bits)).isfinite()


def star_discrepancy(points):
    ordered, n = points.sort().values, len(points)
    steps = torch.arange(n, dtype=torch.float64)
    return float(torch.maximum((steps + 1) / n - ordered, ordered - steps / n).max())


@pytest.mark.parametrize("run", [8, 64, 1000])
def test_runs_of_stream_positions_are_stratified(run):
    generator = torch.Generator().manual_seed(0)
    ours = [
        star_discrepancy(samples(seed, [0] * run, [0] * run, list(range(start, start + run))).progress())
        for seed in range(5)
        for start in (0, 1, 13, 10**6, 10**12)
    ]
    independent = [star_discrepancy(torch.rand(run, dtype=torch.float64, generator=generator)) for _ in range(200)]
    assert max(ours) < 3 / run
    assert sum(ours) / len(ours) < 0.5 * sum(independent) / len(independent)


def test_one_part_of_a_sequence_is_the_sequence():
    noise, whole = requests(20), requests(20).split(1)
    assert torch.equal(whole.keys, noise.keys)
    assert torch.equal(whole.strata, noise.strata)


@pytest.mark.parametrize(("run", "parts"), [(8, 2), (16, 4), (64, 16), (100, 10)])
def test_parts_of_runs_of_stream_positions_are_stratified(run, parts):
    generator, count = torch.Generator().manual_seed(0), run * parts
    ours = [
        star_discrepancy(samples(seed, [0] * run, [0] * run, list(range(start, start + run))).split(parts).progress())
        for seed in range(5)
        for start in (0, 1, 13, 10**6, 10**12)
    ]
    independent = [star_discrepancy(torch.rand(count, dtype=torch.float64, generator=generator)) for _ in range(200)]
    assert max(ours) < 3 / count
    assert sum(ours) / len(ours) < 0.5 * sum(independent) / len(independent)


def test_parts_are_independent_of_each_other_and_of_the_batch():
    noise, parts = requests(500), 6
    split = noise.split(parts)
    draws = split.uniform(20).view(500, parts, 20)
    assert len(draws.unique()) == draws.numel()
    centred = (draws - 0.5) * math.sqrt(12)
    for product in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1], centred[1:, 0] * centred[:-1, 1]):
        assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())
    alone = rows_of(noise, slice(7, 8)).split(parts)
    assert torch.equal(alone.keys, split.keys[7 * parts : 8 * parts])
    assert torch.equal(alone.strata, split.strata[7 * parts : 8 * parts])


def test_streams_at_once_are_those_one_by_one():
    noise = requests(5, seed=3)
    one_by_one = torch.stack([noise.derive(stream).uniform() for stream in range(7)])
    assert torch.equal(noise.uniform_of_streams(7), one_by_one)
    assert noise.uniform_of_streams(0).shape == (0, 5)
