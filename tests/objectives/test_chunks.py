"""Losses from the predicted tokens alone and a few at a time, against those from all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .helpers import batch_of, random_tokens, small_ar, small_nar

MASK_ID, N, NUM_TOKENS = 10, 12, 11
WIDE, DIM = 23, 40  # a vocabulary and a width that no other size of a tensor equals
LENGTHS = torch.tensor([12, 5, 12, 1, 9, 0])
TIED = {"tie_embedding": True, "tie_embedding_scale": 0.1}

WRAPPERS = {
    "nar": lambda net: small_nar(net=net, schedule="cosine", no_replace_prob=0.3),
    "bernoulli": lambda net: small_nar(net=net, masking="bernoulli", use_simple_mdlm_loss_weight=False),
    "self_critic": lambda net: small_nar(net=net, self_token_critic=True, self_cond=True),
    "ar": lambda net: small_ar(net={**net, "add_continuous_pred_head": True}, add_attn_z_loss=True, mask_prob=0.2),
}
every_wrapper = pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)


def ragged_batch(lengths=LENGTHS):
    return batch_of(random_tokens(len(lengths), N).masked_fill(torch.arange(N) >= lengths[:, None], 0), lengths)


def gradients(wrapper):
    return {name: parameter.grad for name, parameter in wrapper.named_parameters()}


class LargestLogits(TorchDispatchMode):
    """Most tokens that any tensor as wide as the vocabulary holds, other than the transposed weight."""

    rows = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.shape[1:] == (WIDE,) and len(tensor) != DIM:
                self.rows = max(self.rows, len(tensor))
        return results


@every_wrapper
@pytest.mark.parametrize("net", [{}, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([0, 0])], ids=["ragged", "none"])
def test_chunks_change_no_loss_and_no_gradient(make, net, lengths):
    results = []
    for size in (2**26, 3 * NUM_TOKENS, 1):
        wrapper = make({**net, "logits_chunk_size": size}).train()
        terms = wrapper.loss_terms(ragged_batch(lengths), seed=3)
        terms.total().backward()
        results.append((terms, gradients(wrapper)))
    (whole, expected), *chunked = results
    for terms, ours in chunked:
        torch.testing.assert_close(terms.sums, whole.sums, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(terms.moments, whole.moments, rtol=1e-5, atol=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: n + text)


@every_wrapper
def test_the_logits_of_all_tokens_never_exist_at_once(make):
    rows = {}
    for size in (2**26, 3 * WIDE):
        wrapper = make({"num_tokens": WIDE, "dim": DIM, "logits_chunk_size": size}).train()
        with LargestLogits() as largest:
            wrapper.loss_terms(ragged_batch(), seed=3).total().backward()
        rows[size] = largest.rows
    assert rows[3 * WIDE] == 3
    assert rows[2**26] > 12  # the measure sees them where they are


@pytest.mark.parametrize("net", [{}, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("loss", ["mdlm", "maskgit"])
def test_the_masked_tokens_alone_give_the_gradients_of_all_logits(net, loss):
    """The whole loss written out: logits everywhere, cross entropy everywhere, and only then the selection."""
    options = {"schedule": "cosine", "use_simple_mdlm_loss_weight": loss == "mdlm"}
    wrapper, reference = (small_nar(net=net, **options).train() for _ in range(2))
    batch, seen = ragged_batch(), []
    wrapper.net.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    terms = wrapper.loss_terms(batch, seed=1)
    terms.total().backward()

    masked = seen[0] == MASK_ID
    logits = reference.net(seen[0], mask=torch.arange(N) < LENGTHS[:, None])
    logits = logits.masked_fill(torch.arange(NUM_TOKENS) == MASK_ID, -torch.inf)
    losses = F.cross_entropy(logits.transpose(1, 2), batch.tokens, reduction="none")
    k, n = masked.sum(dim=1).double().clamp(min=1), LENGTHS.clamp(min=1)
    weights = 1 / (k * (2 / torch.pi) * (torch.arccos((k - 1) / n) - torch.arccos(k / n)))
    if loss == "mdlm":
        expected = (losses * masked * weights[:, None]).sum() / LENGTHS.sum()
    else:
        expected = losses[masked].mean()
    expected.backward()
    assert terms.total().item() == pytest.approx(expected.item(), rel=1e-5)
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(gradients(wrapper)[name], gradient, rtol=1e-3, atol=1e-5)
