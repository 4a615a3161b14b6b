"""What every kind of model answers alike, and the two faces of a wrapper."""

import copy

import pytest
import torch

from nar_scale.config import (
    SAMPLERS,
    ConfidenceDecoding,
    LeftToRightDecoding,
    RandomDecoding,
    SelfSpeculativeDecoding,
    validate_config,
)
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import ConfigError
from nar_scale.masking import Noise
from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import BlockDiffusionWrapper, HybridWrapper, Objective, Samples, build_wrapper, evaluating
from tests.errors import refused
from tests.model.helpers import small_net
from tests.objectives.helpers import batch_of, random_tokens, small_ar, small_nar

MASK_ID, N = 10, 12


def small_blocks(**options):
    options = {"no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    return BlockDiffusionWrapper(small_net(Encoder), mask_id=MASK_ID, block_size=4, **options)


def decoding_of(make, sampler, **settings):
    """The settings of a sampler, or of the one that a model has which generates left to right."""
    if make is small_hybrid:
        return SelfSpeculativeDecoding(sampler="self_speculative", **settings)
    if make is small_ar:
        return LeftToRightDecoding(sampler="left_to_right", **settings)
    return SAMPLERS[sampler](sampler=sampler, **settings)


def small_hybrid(**options):
    return HybridWrapper(small_net(Decoder), mask_id=MASK_ID, block_size=4, **options)


KINDS = {"ar": small_ar, "nar": small_nar, "blocks": small_blocks, "hybrid": small_hybrid}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@every_kind
def test_an_objective_describes_its_loss_terms(make):
    objective = make()
    assert isinstance(objective, Objective)
    terms = objective.loss_terms(batch_of(random_tokens(4, N)), seed=1)
    assert len(objective.term_names) == len(terms.sums) == len(terms.counts)
    assert objective.likelihood_kind == ("exact" if make in (small_ar, small_hybrid) else "bound")
    assert torch.equal(objective.counts(batch_of(random_tokens(4, N)), seed=1), terms.counts)


@every_kind
def test_people_get_a_loss_and_the_trainer_its_terms(make):
    objective, tokens = make().eval(), random_tokens(4, N)
    torch.manual_seed(3)
    loss = objective(tokens)
    loss = loss if make is small_ar else loss.loss
    assert loss.shape == ()
    if make is small_ar:  # of the others the two draw different masks
        torch.testing.assert_close(loss, objective.loss_terms(batch_of(tokens)).total())


@every_kind
def test_calls_are_redirected_to_the_loss_terms(make):
    """What an engine needs: hooks on the call run, weights keep their names, and the mode counts."""
    plain = make().train()
    redirected = copy.deepcopy(plain)
    redirected.redirect_forward()
    called = []
    redirected.register_forward_pre_hook(lambda *_: called.append("before"))
    redirected.register_forward_hook(lambda *_: called.append("after"))
    batch = batch_of(random_tokens(4, N))
    expected, terms = plain.loss_terms(batch, seed=5), redirected(batch, seed=5)
    assert called == ["before", "after"]
    assert torch.equal(terms.sums, expected.sums)
    assert torch.equal(terms.moments, expected.moments)
    assert [name for name, _ in redirected.named_parameters()] == [name for name, _ in plain.named_parameters()]
    terms.total().backward()
    assert all(weight.grad is not None for weight in redirected.net.attn_layers.parameters())


@every_kind
@pytest.mark.parametrize("prompt", [[], [1, 2, 3]])
def test_samples_continue_a_prompt_the_same_in_any_batch(make, prompt):
    objective = make()
    given = torch.tensor([objective.start_from(prompt, N, end_token=7)] * 3)
    ids, decoding = torch.tensor([4, 9, 2]), decoding_of(make, "random", temperature=3.0)
    samples = objective.sample(given, decoding, Noise.of_requests(1, ids))
    assert isinstance(samples, Samples)
    for row, number in enumerate(ids):
        alone = objective.sample(given[:1], decoding, Noise.of_requests(1, number[None]))
        assert alone.tokens == [samples.tokens[row]]
        assert alone.network_calls == [samples.network_calls[row]]
    assert len({tuple(tokens) for tokens in samples.tokens}) == 3
    for tokens, calls in zip(*samples):
        if make in (small_ar, small_hybrid):
            assert len(tokens) == N - max(len(prompt), 1)
            assert calls <= len(tokens) <= calls * (1 if make is small_ar else 4)
        else:
            assert tokens[: len(prompt)] == prompt
            assert len(tokens) == N
            assert MASK_ID not in tokens
            finished_blocks = 2 if make is small_blocks else 0  # each passes once more, for its keys and values
            assert 1 <= calls - finished_blocks <= N - len(prompt)


def test_a_sample_begins_after_the_end_token():
    assert small_ar().start_from([], N, end_token=7) == [7]
    assert small_ar().start_from([], N, end_token=None) == [0]
    assert small_ar().start_from([3], N, end_token=7) == [3]
    assert small_nar().start_from([3], 4, end_token=7) == [3, MASK_ID, MASK_ID, MASK_ID]


def test_a_sample_ends_before_the_end_token():
    objective, noise = small_ar(), Noise.of_requests(1, torch.arange(20))
    given, decoding = torch.full((20, 1), 7), decoding_of(small_ar, "left_to_right")
    whole = objective.sample(given, decoding, noise)
    cut = objective.sample(given, decoding, noise, end_token=5)
    ended = 0
    for tokens, calls, until_end, calls_until_end in zip(*whole, *cut):
        assert calls == N - 1
        if 5 in tokens:
            ended += 1
            assert until_end == tokens[: tokens.index(5)]
            assert calls_until_end == len(until_end) + 1
        else:
            assert (until_end, calls_until_end) == (tokens, calls)
    assert 0 < ended < 20


@every_kind
def test_without_top_k_all_tokens_are_eligible_and_with_one_the_most_probable(make):
    objective, ids = make(), torch.arange(5)
    given = torch.tensor([objective.start_from([], N, end_token=7)] * 5)

    def tokens(**settings):
        decoding = decoding_of(make, "confidence", temperature=5.0, **settings)
        return objective.sample(given, decoding, Noise.of_requests(1, ids)).tokens

    assert tokens() == tokens(top_k=objective.net.num_tokens) != tokens(top_k=2)


@every_kind
def test_a_sampler_of_another_kind_of_model_is_refused(make):
    objective = make()
    other = "confidence" if make is small_ar else "left_to_right"
    given = torch.tensor([objective.start_from([], N, end_token=7)])
    if make is small_hybrid:  # it has them all
        assert objective.sample(given, SAMPLERS[other](sampler=other), Noise.of_requests(1, torch.arange(1))).tokens
        return
    with refused(ConfigError, other):
        objective.sample(given, SAMPLERS[other](sampler=other), Noise.of_requests(1, torch.arange(1)))


LEFT_TO_RIGHT = LeftToRightDecoding(sampler="left_to_right")


@pytest.mark.parametrize(
    ("objective", "decoding", "manifest"),
    [
        (
            {"kind": "autoregressive"},
            {},
            DecodeManifest(decoding=LEFT_TO_RIGHT, schedule=None, mask_id=None, end_token=7),
        ),
        (
            {"kind": "non_autoregressive", "schedule": "cosine", "prefix_length": 2},
            {"steps": 5, "guidance": 2.0},
            DecodeManifest(
                decoding=RandomDecoding(sampler="random", steps=5, guidance=2.0),
                schedule="cosine",
                mask_id=MASK_ID,
                end_token=7,
            ),
        ),
        (
            {"kind": "block_diffusion", "block_size": 4},
            {"sampler": "confidence", "top_k": 3},
            DecodeManifest(
                decoding=ConfidenceDecoding(sampler="confidence", steps=18, top_k=3),
                schedule="linear",
                mask_id=MASK_ID,
                end_token=7,
                block_size=4,
            ),
        ),
    ],
)
def test_the_decode_manifest_of_each_kind(objective, decoding, manifest):
    values = {
        "model": {"dim": 16, "depth": 1, "heads": 2, "max_seq_len": N},
        "objective": objective,
        "data": {"directory": "nowhere"},
        "decoding": decoding,
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    config = validate_config(values, "the test")
    wrapper = build_wrapper(config, vocabulary_size=MASK_ID)
    assert DecodeManifest.of(config, wrapper.mask_id, 7) == manifest
    assert (wrapper.mask_id, wrapper.num_classes) == (manifest.mask_id, None)
    assert wrapper.conditional == ("prefix_length" in objective)


def test_modules_are_in_their_former_mode_after_an_evaluation():
    training, still = small_ar().train(), small_nar().eval()

    def fail():
        with evaluating(training, still):
            assert not training.training
            assert not training.net.attn_layers.training
            raise KeyError("anything")

    with pytest.raises(KeyError):
        fail()
    assert training.training
    assert training.net.attn_layers.training
    assert not still.training
