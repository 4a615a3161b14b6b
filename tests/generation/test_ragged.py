"""Sequences of different lengths in one batch come out as alone."""

import random

import pytest

from nar_scale.checkpoint import load_consolidated
from nar_scale.generation import Request, SamplingOptions, generate_samples
from nar_scale.generation.batch_size import FixedBatchSize
from nar_scale.generation.encoding import encode_request
from nar_scale.generation.sampling import generate_batches
from tests.generation.helpers import KINDS, export

LENGTH = 96
OBJECTIVES = {
    "plain": {},
    "self_conditioning": {"self_conditioning": True},
    "critic": {"self_token_critic": True},
}


def alone_and_together(checkpoint, requests, **options):
    """The samples of all requests in batches, and each by itself."""
    model = load_consolidated(checkpoint)
    sampling = SamplingOptions(seed=5, **options)
    together = list(generate_samples(model, requests, sampling, batch_size=16))
    alone = [next(generate_samples(model, [request], sampling, batch_size=1)) for request in requests]
    return together, alone


def export_long(directory, kind, **sections):
    model = {"dim": 32, "depth": 2, "heads": 2, "max_seq_len": LENGTH}
    return export(directory, kind, model=model, **sections)


def gaps():
    """Texts of all lengths, with gaps here and there."""
    draw = random.Random(0)
    texts = []
    for length in range(3, LENGTH + 1):
        gap = draw.randint(1, length - 2)
        before = draw.randint(0, length - gap)
        texts.append("a" * before + f"<mask:{gap}>" + "b" * (length - gap - before))
    return [Request(number, text=text) for number, text in enumerate(texts)]


@pytest.mark.parametrize("settings", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("sampler", ["confidence", "random"])
def test_texts_with_gaps(tmp_path, settings, sampler):
    checkpoint = export_long(tmp_path / "model", "non_autoregressive", objective=settings)
    together, alone = alone_and_together(checkpoint, gaps(), sampler=sampler, steps=6)
    assert together == alone
    assert [len(sample.tokens) for sample in together] == list(range(3, LENGTH + 1))
    assert len({sample.network_calls for sample in together}) > 3


@pytest.mark.parametrize("end", [True, False])
def test_prompts_of_an_autoregressive_model(tmp_path, end):
    tokenizer = "byte" if end else None
    checkpoint = export_long(tmp_path / "model", "autoregressive", tokenizer=tokenizer)
    if end:
        requests = [Request(number, prompt="x" * number) for number in range(LENGTH)]
    else:
        requests = [Request(number) for number in range(20)]
    together, alone = alone_and_together(checkpoint, requests, temperature=1.5)
    assert together == alone
    if end:
        lengths = [len(sample.tokens) for sample in together]
        assert all(length <= LENGTH - max(number, 1) for number, length in enumerate(lengths))
        assert lengths[-1] == 1


@pytest.mark.parametrize("sampler", ["left_to_right", "self_speculative", "random"])
def test_prompts_of_a_hybrid(tmp_path, sampler):
    checkpoint = export_long(tmp_path / "model", "hybrid")
    requests = [Request(number, prompt="x" * (7 * number % LENGTH)) for number in range(24)]
    together, alone = alone_and_together(checkpoint, requests, sampler=sampler)
    assert together == alone
    assert len({len(sample.tokens) for sample in together}) > 12


def test_prompt_lookup_takes_fewer_calls_for_the_same_samples(tmp_path):
    checkpoint = export_long(tmp_path / "model", "autoregressive", decoding={"top_k": 1})
    requests = [Request(number, prompt="ab" * number) for number in range(20)]
    plain, _ = alone_and_together(checkpoint, requests)
    together, alone = alone_and_together(checkpoint, requests, sampler_options={"prompt_lookup": 4})
    assert together == alone
    assert [sample.tokens for sample in together] == [sample.tokens for sample in plain]
    assert sum(sample.network_calls for sample in together) < 0.8 * sum(sample.network_calls for sample in plain)


def test_blocks_of_block_diffusion_share_a_batch_where_they_are_of_one_length(tmp_path):
    checkpoint = export_long(tmp_path / "model", "block_diffusion")
    requests = [Request(number, text=f"ab<mask:{13 + 8 * (number % 3)}>c") for number in range(7)]
    together, alone = alone_and_together(checkpoint, requests, steps=4)
    assert together == alone


@pytest.mark.parametrize("kind", KINDS)
def test_similar_lengths_share_a_batch(tmp_path, kind):
    model = load_consolidated(export_long(tmp_path / "model", kind))
    requests = [Request(number, prompt="x" * (7 * number % 60)) for number in range(60)]
    batches = list(generate_batches(model, requests, SamplingOptions(seed=5), FixedBatchSize(16)))
    assert sorted(sample.request.number for batch in batches for sample in batch) == list(range(60))
    lengths = [len(encode_request(request, model, LENGTH)) for request in requests]
    in_batches = [[lengths[sample.request.number] for sample in batch] for batch in batches]
    spans = [max(batch) - min(batch) for batch in in_batches]
    assert max(spans) <= 16
    assert [len(batch) for batch in batches] == [16, 16, 16, 12]
