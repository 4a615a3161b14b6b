"""The output projection in chunks, against itself in one piece."""

import pytest
import torch
import torch.nn.functional as F

from nar_scale.model import Head

TOKENS, DIM, VOCABULARY = 23, 6, 7


def cross_entropies(logits, answers):
    return F.cross_entropy(logits, answers, reduction="none")


def inputs(tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(tokens, DIM, generator=generator).requires_grad_()
    return embeddings, torch.randint(VOCABULARY, (tokens,), generator=generator)


def head(chunk_size, scale=1.0):
    torch.manual_seed(1)
    return Head(DIM, VOCABULARY, scale, chunk_size)


def losses_and_gradients(chunk_size, scale=1.0):
    layer, (embeddings, answers) = head(chunk_size, scale), inputs()
    losses = layer(embeddings, cross_entropies, answers)
    (losses * torch.arange(TOKENS)).sum().backward()
    return losses.detach(), embeddings.grad, layer.weight.grad


@pytest.mark.parametrize("chunk_size", [1, 2 * VOCABULARY, 50, TOKENS * VOCABULARY - 1, TOKENS * VOCABULARY])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_chunks_give_the_losses_and_gradients_of_all_logits(chunk_size, scale):
    layer, (embeddings, answers) = head(chunk_size), inputs()
    losses = cross_entropies(scale * embeddings @ layer.weight.T, answers)
    (losses * torch.arange(TOKENS)).sum().backward()
    expected = losses.detach(), embeddings.grad, layer.weight.grad
    for ours, wanted in zip(losses_and_gradients(chunk_size, scale), expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("chunk_size", "largest"), [(1, 1), (3 * VOCABULARY, 3), (70, 10), (10**9, TOKENS)])
def test_no_more_logits_than_asked_for_exist_at_a_time(chunk_size, largest, grad):
    seen, (embeddings, answers) = [], inputs()

    def reduce(logits, answers):
        seen.append(tuple(logits.shape))
        return cross_entropies(logits, answers)

    with torch.set_grad_enabled(grad):
        losses = head(chunk_size)(embeddings, reduce, answers)
    forward = len(seen)
    assert sum(rows for rows, _ in seen) == len(losses) == TOKENS
    if grad:
        losses.sum().backward()
        assert len(seen) == (forward if largest == TOKENS else 2 * forward)
    assert {width for _, width in seen} == {VOCABULARY}
    assert max(rows for rows, _ in seen) == largest
    assert forward == -(-TOKENS // largest)


@pytest.mark.parametrize("chunk_size", [1, 10**9])
def test_no_tokens_give_no_losses_and_finite_gradients(chunk_size):
    layer, (embeddings, answers) = head(chunk_size), inputs(0)
    losses = layer(embeddings, cross_entropies, answers)
    assert losses.shape == (0,)
    losses.sum().backward()
    assert (layer.weight.grad == 0).all()


def test_without_a_reduction_it_is_a_projection_of_any_shape():
    embeddings = torch.randn(2, 3, DIM)
    layer = head(1, 0.5)
    torch.testing.assert_close(layer(embeddings), 0.5 * embeddings @ layer.weight.T)
