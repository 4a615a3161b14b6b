"""Trained on a source of known entropy, every schedule comes close to it, and none below."""

import pytest
import torch

from benchmarks.sources import MarkovSource
from nar_scale import BlockDiffusionWrapper, Encoder, NonAutoregressiveWrapper, TransformerWrapper
from nar_scale.evaluation import evaluate_likelihood
from tests.masking.helpers import SCHEDULES

from .helpers import batch_of

SYMBOLS, N = 6, 8
CASES = {
    # `uniform_count` is `linear`
    **{name: {"schedule": SCHEDULES[name]} for name in ("linear", "cosine", "quadratic")},
    "bernoulli": {"masking": "bernoulli"},
    "blocks": {"block_size": 4},
}


def train(source, steps=300, **options):
    torch.manual_seed(0)
    net = TransformerWrapper(num_tokens=SYMBOLS + 1, max_seq_len=N, attn_layers=Encoder(dim=48, depth=2, heads=4))
    kind = BlockDiffusionWrapper if "block_size" in options else NonAutoregressiveWrapper
    wrapper = kind(net, mask_id=SYMBOLS, no_replace_prob=0.0, random_token_prob=0.0, **options)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=4e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, 2 * (1 - step / steps))
        loss = wrapper.loss_terms(batch_of(source.sample(64, N), first=64 * step), seed=0).total()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapper


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_bound_of_a_trained_model_approaches_the_entropy_from_above(options):
    source = MarkovSource(SYMBOLS)
    wrapper = train(source, **options)
    likelihood = evaluate_likelihood(wrapper, [batch_of(source.sample(8000, N))])
    entropy = source.entropy(N)
    assert likelihood.standard_error < 0.02
    assert entropy - 3 * likelihood.standard_error < likelihood.nats_per_token < 1.06 * entropy
