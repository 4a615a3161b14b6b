import math
from itertools import combinations

import pytest
import torch

from nar_scale.errors import UserError
from nar_scale.evaluation import score_continuations
from nar_scale.model import Encoder, KeyValueCache
from nar_scale.objectives import BlockDiffusionWrapper, NonAutoregressiveWrapper
from tests.errors import refused
from tests.model.helpers import TableNet, small_net
from tests.objectives.helpers import nelbo_by_all_orders, random_tokens, small_ar, small_nar

MASK = 3  # of the tables
TOKENS = random_tokens(4, 12).tolist()


def table_wrapper(n):
    return NonAutoregressiveWrapper(TableNet(n, MASK + 1), mask_id=MASK)


def test_left_to_right_equals_a_direct_computation():
    wrapper = small_ar().train()
    pairs = [(row[:cut], row[cut:]) for row, cut in zip(TOKENS, (1, 5, 11, 7))]
    pairs.append((TOKENS[0] + TOKENS[1], TOKENS[2][:3]))  # loses the beginning of its context
    scores = score_continuations(wrapper, pairs, batch_size=2)
    for (context, continuation), score in zip(pairs, scores):
        row = (context + continuation)[-13:]
        with torch.no_grad():
            log_probs = wrapper.net(torch.tensor([row[:-1]]))[0].double().log_softmax(dim=-1)
        direct = sum(float(log_probs[-len(continuation) + i, token]) for i, token in enumerate(continuation))
        assert score.log_likelihood == pytest.approx(direct, rel=1e-5)
        assert score.standard_error == 0
    assert wrapper.training


def test_left_to_right_recognizes_its_own_greedy_continuation():
    wrapper = small_ar()
    prompt = torch.tensor(TOKENS[0][:4])
    own = wrapper.generate(prompt, 5, temperature=0, return_prompt=False).tolist()
    other = [*own[:-1], (own[-1] + 1) % 10]
    assert [
        score.greedy for score in score_continuations(wrapper, [(prompt.tolist(), own), (prompt.tolist(), other)])
    ] == [
        True,
        False,
    ]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_few_masked_tokens_are_scored_exactly(length):
    """The mean over all sets of masked tokens is that over all orders of revealing them."""
    wrapper, tokens = table_wrapper(4), [1, 0, 2, 2][: 1 + length]
    (score,) = score_continuations(wrapper, [(tokens[:1], tokens[1:])])
    whole = torch.tensor(tokens + [MASK] * (3 - length))
    places = list(range(1, 1 + length))
    assert score.log_likelihood == pytest.approx(-nelbo_by_all_orders(wrapper.net, whole, places, MASK), rel=1e-5)
    assert score.standard_error == 0


def test_a_single_token_takes_one_pass_and_others_as_many_as_there_are_samples():
    wrapper = table_wrapper(4)
    score_continuations(wrapper, [([1], [0])])
    assert [len(seen) for seen in wrapper.net.seen] == [1]
    wrapper.net.seen.clear()
    score_continuations(wrapper, [([], [1, 0, 2, 2])], mask_samples=10)
    assert 10 < sum(map(len, wrapper.net.seen)) <= 10 + 4  # those of greedy decoding


def test_drawn_masks_meet_brute_force_within_the_error_that_they_state():
    wrapper, tokens = table_wrapper(4), [1, 0, 2, 2]
    truth = -nelbo_by_all_orders(wrapper.net, torch.tensor(tokens), [0, 1, 2, 3], MASK)
    deviations = []
    for seed in range(60):
        (score,) = score_continuations(wrapper, [([], tokens)], mask_samples=14, seed=seed)
        assert score.standard_error > 0
        deviations.append((score.log_likelihood - truth) / score.standard_error)
    deviations = torch.tensor(deviations)
    assert deviations.abs().max() < 5
    assert abs(deviations.mean()) < 4 / math.sqrt(60)
    assert 0.6 < deviations.std() < 1.6


def test_block_diffusion_is_scored_by_its_blocks_as_it_generates():
    wrapper = BlockDiffusionWrapper(small_net(Encoder), mask_id=10, block_size=4).eval()
    row = TOKENS[0][:9]
    (score,) = score_continuations(wrapper, [(row[:2], row[2:])])  # of blocks with 2, 4 and 1 of its tokens
    total, cache = 0.0, KeyValueCache(12)
    with torch.no_grad():
        for start, places in ((0, (2, 3)), (4, (0, 1, 2, 3)), (8, (0,))):
            block = torch.tensor((row[start:] + [10] * 4)[:4])
            for k in range(1, len(places) + 1):
                for hidden in combinations(places, k):
                    masked = block.clone()
                    masked[list(hidden)] = 10
                    logits, _ = wrapper.predict(masked[None], None, cache=cache)
                    cache.truncate(start)
                    logits[..., 10] = -math.inf
                    log_probs = logits[0].double().log_softmax(dim=-1)
                    losses = sum(float(log_probs[place, block[place]]) for place in hidden)
                    total += losses / (k * math.comb(len(places), k))
            wrapper.predict(block[None], None, cache=cache)
    assert score.log_likelihood == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(
    "wrapper",
    [small_ar(), small_nar(), BlockDiffusionWrapper(small_net(Encoder), mask_id=10, block_size=4)],
    ids=["ar", "nar", "block"],
)
def test_scores_do_not_depend_on_the_batch(wrapper):
    pairs = [(row[:cut], row[cut:]) for row, cut in zip(TOKENS, (1, 9, 10, 4))]
    together = score_continuations(wrapper, pairs, mask_samples=20, batch_size=7)
    for pair, score in zip(pairs, together):
        (alone,) = score_continuations(wrapper, [pair], mask_samples=20)
        assert alone.log_likelihood == pytest.approx(score.log_likelihood, rel=1e-4)
        assert alone.standard_error == pytest.approx(score.standard_error, rel=1e-3)
        assert alone.greedy == score.greedy


def test_masked_greedy_decoding_reveals_the_most_certain_token_first():
    wrapper = small_nar()
    own = wrapper.generate(prompts=torch.full((1, 12), 10), start_temperature=0, steps=12)[0].tolist()
    other = [*own[:-1], (own[-1] + 1) % 10]
    scores = score_continuations(wrapper, [([], own), ([], other)], mask_samples=4)
    assert [score.greedy for score in scores] == [True, False]


def test_what_cannot_be_scored_is_refused():
    for pairs in ([([1], [])], [([1], [2] * 13)]):
        with refused(UserError, "continuation"):
            score_continuations(small_nar(), pairs)
    with refused(UserError, "context"):
        score_continuations(small_ar(), [([], [1])])
    with refused(UserError, 0, "mask samples"):
        score_continuations(small_nar(), [([1], [2])], mask_samples=0)
    with refused(UserError, "class"):
        score_continuations(small_nar(num_classes=2), [([1], [2])])
