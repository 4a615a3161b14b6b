"""Who attends to whom, against a rule spelled out for one pair of places at a time."""

from itertools import product

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from nar_scale.model import Decoder, Encoder, KeyValueCache, TransformerWrapper
from nar_scale.model.attention_mask import Visibility

from .helpers import small_net

N, BATCH = 9, 3
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0] * 9, [4, 4, 3, 3, 3, 3, 3, 3, 9]])
LENGTHS = torch.tensor([9, 6, 1])
PRESENT = torch.arange(N) < LENGTHS[:, None]

NAMES = ("window", "documents", "present", "rule")
FREE = (None, False, False, False)
every_restriction = pytest.mark.parametrize(NAMES, list(product([None, 1, 3], *[[False, True]] * 3)))
some_restrictions = pytest.mark.parametrize(
    NAMES,
    [
        FREE,
        (1, False, False, False),
        (3, False, False, False),
        (None, True, False, False),
        (None, False, True, False),
        (None, False, False, True),
        (3, True, True, True),
    ],
)


def tokens(batch=BATCH, seed=0):
    return torch.randint(11, (batch, N), generator=torch.Generator().manual_seed(seed))


def not_to_multiples_of_four(query, key):
    return key % 4 != query % 2


def sees_by_hand(row, query, key, causal, window, documents, present, rule):
    if query == key:
        return True
    if causal and key > query:
        return False
    if window is not None and abs(query - key) >= window:
        return False
    if documents and DOCUMENTS[row, query] != DOCUMENTS[row, key]:
        return False
    if present and key >= LENGTHS[row]:
        return False
    return not (rule and key % 4 == query % 2)


def matrix_by_hand(causal, *restrictions):
    return torch.tensor(
        [[[sees_by_hand(row, i, j, causal, *restrictions) for j in range(N)] for i in range(N)] for row in range(BATCH)]
    )


def visibility(causal, window, documents, present, rule, past=0):
    return Visibility(
        N - past,
        past,
        causal,
        window,
        PRESENT if present else None,
        DOCUMENTS if documents else None,
        not_to_multiples_of_four if rule else None,
    )


@every_restriction
@pytest.mark.parametrize("causal", [False, True])
def test_the_mask_is_the_rule_for_every_pair_of_places(causal, window, documents, present, rule):
    restrictions = (window, documents, present, rule)
    everything = matrix_by_hand(causal, *restrictions)
    for past in (0, 4, 8):
        ours = visibility(causal, *restrictions, past=past)
        mask = ours.dense(torch.device("cpu"))
        if mask is None:
            mask = torch.ones(N, N, dtype=torch.bool).tril() if ours.is_causal else torch.tensor(True)
        mask, wanted = mask.expand(BATCH, 1, N - past, N)[:, 0], everything[:, past:]
        asked = PRESENT[:, past:] if present else torch.ones(BATCH, N - past, dtype=torch.bool)
        assert torch.equal(mask[asked], wanted[asked])


@some_restrictions
@pytest.mark.parametrize("causal", [False, True])
def test_the_plan_for_the_other_kernel_lets_the_same_pairs_meet(causal, window, documents, present, rule):
    restrictions = (window, documents, present, rule)
    plan = visibility(causal, *restrictions).block_mask(BATCH, torch.device("cpu"))
    if plan is None:
        assert restrictions == FREE
        return
    keys = torch.eye(N).expand(BATCH, 1, N, N)  # as values, the output is the attention weights
    weights = flex_attention(torch.zeros(BATCH, 1, N, N), keys, keys, block_mask=plan)[:, 0]
    assert torch.equal(weights > 0, matrix_by_hand(causal, *restrictions))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 100])
def test_the_plan_skips_the_blocks_that_nobody_sees_in_each_row(causal, window):
    n, size = 512, 128
    documents = torch.stack((torch.arange(n) // 256, torch.arange(n) // 384, torch.zeros(n).long()))
    present = torch.arange(n) < torch.tensor([512, 512, 130])[:, None]
    plan = Visibility(n, 0, causal, window, present, documents).block_mask(BATCH, torch.device("cpu"))
    distance = torch.arange(n)[:, None] - torch.arange(n)
    allowed = (documents[:, :, None] == documents[:, None]) & present[:, None]
    if causal:
        allowed = allowed & (distance >= 0)
    if window:
        allowed = allowed & (distance.abs() < window)
    allowed = allowed | (distance == 0)
    blocks = allowed.view(BATCH, n // size, size, n // size, size).any(dim=4).any(dim=2)
    assert torch.equal(plan.to_dense()[:, 0].bool(), blocks)
    assert not blocks.all()


def reached(net, place, **arguments):
    """Places of each row whose logits a change at `place` moves."""
    x = tokens()
    changed = x.clone()
    changed[:, place] = (x[:, place] + 1) % 11
    moved = (net(changed, **arguments) - net(x, **arguments)).abs().amax(dim=2) > 1e-6
    return [row.nonzero().flatten().tolist() for row in moved]


@torch.no_grad()
def test_a_change_reaches_what_sees_it():
    def net(kind, **options):
        return small_net(kind, depth=1, **options)

    assert reached(net(Decoder, window=3), 4) == [[4, 5, 6]] * 3
    assert reached(net(Encoder, window=3), 4) == [[2, 3, 4, 5, 6]] * 3
    assert reached(net(Decoder, window=1), 4) == [[4]] * 3
    documents = {"documents": DOCUMENTS}
    assert reached(net(Encoder), 4, **documents) == [[3, 4, 5, 6], list(range(9)), [2, 3, 4, 5, 6, 7]]
    assert reached(net(Decoder), 4, **documents) == [[4, 5, 6], [4, 5, 6, 7, 8], [4, 5, 6, 7]]
    assert reached(net(Encoder, window=2), 4, **documents) == [[3, 4, 5]] * 3
    assert reached(net(Decoder), 1, rule=lambda query, key: query > key + 5) == [[1, 7, 8]] * 3
    masked = {"mask": torch.arange(N).expand(BATCH, N) != 4}
    assert not set(reached(net(Encoder, window=3), 4, **masked)[0]) - {4}
    assert not set(reached(net(Encoder), 4, **masked, **documents)[0]) - {4}


def test_two_layers_see_twice_as_far():
    assert reached(small_net(Encoder, window=2), 4) == [[2, 3, 4, 5, 6]] * 3


@torch.no_grad()
@pytest.mark.parametrize("kind", [Encoder, Decoder])
@some_restrictions
def test_both_kernels_give_the_same_logits(kind, window, documents, present, rule):
    options = {"window": window, "heads": 4, "kv_heads": 2}
    sdpa, flex = (small_net(kind, attention_kernel=kernel, **options) for kernel in ("sdpa", "flex"))
    arguments = {
        "documents": DOCUMENTS if documents else None,
        "mask": PRESENT if present else None,
        "rule": not_to_multiples_of_four if rule else None,
    }
    ours, theirs = flex(tokens(), **arguments), sdpa(tokens(), **arguments)
    assert ours.isfinite().all()
    asked = PRESENT if present else torch.ones_like(PRESENT)
    torch.testing.assert_close(ours[asked], theirs[asked], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 3}, {"window": 4, "attention_kernel": "flex"}])
@pytest.mark.parametrize("chunks", [[1] * N, [4, 1, 1, 3], [3, 6]])
@pytest.mark.parametrize("restricted", [False, True])
@torch.no_grad()
def test_the_cache_changes_nothing(options, chunks, restricted):
    net, x = small_net(Decoder, **options), tokens()
    gaps = torch.arange(N).expand(BATCH, N) % 5 != 1
    arguments = {"mask": gaps, "documents": DOCUMENTS} if restricted else {}
    cache, pieces = KeyValueCache(capacity=N), []
    for piece in x.split(chunks, dim=1):
        end = cache.longest + piece.shape[1]
        pieces.append(net(piece, cache=cache, **{name: value[:, :end] for name, value in arguments.items()}))
    torch.testing.assert_close(torch.cat(pieces, dim=1), net(x, **arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("documents", [False, True])
def test_padding_that_sees_nothing_is_finite_with_finite_gradients(kind, window, documents):
    net = small_net(kind, window=window)
    present = PRESENT.clone()
    present[2] = False
    logits = net(tokens(), mask=present, documents=DOCUMENTS if documents else None)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def with_context(depth=1, **options):
    torch.manual_seed(0)
    layers = Encoder(16, depth, 2, cross_attend=True, **options)
    return TransformerWrapper(num_tokens=11, max_seq_len=N, attn_layers=layers)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_cross_attention_reads_every_present_token_of_the_context(kernel):
    net, x = with_context(dim_context=5, attention_kernel=kernel, window=2), tokens()
    context = torch.randn(BATCH, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False, False, False, True]])
    before = net(x, context=context, context_mask=mask)
    for place in range(4):
        other = context.clone()
        other[:, place] += 1.0
        moved = (net(x, context=other, context_mask=mask) - before).abs().amax(dim=2) > 1e-6
        assert torch.equal(moved, mask[:, place, None].expand(BATCH, N))
    torch.testing.assert_close(
        net(x[1:2], context=context[1:2, ::2]), net(x, context=context, context_mask=mask)[1:2], rtol=1e-4, atol=1e-5
    )
    order = torch.tensor([2, 0, 3, 1])  # a context has no positions
    torch.testing.assert_close(net(x, context=context[:, order]), net(x, context=context), rtol=1e-4, atol=1e-5)


def test_a_context_that_is_masked_altogether_is_finite_with_finite_gradients():
    net = with_context(depth=2)
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    logits = net(tokens(), context=torch.randn(BATCH, 4, 16), context_mask=mask)
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_a_context_comes_with_cross_attention_or_not_at_all():
    with pytest.raises(ValueError, match="a context is needed"):
        with_context()(tokens())
    with pytest.raises(ValueError, match="a context needs cross_attend=True"):
        small_net(Encoder)(tokens(), context=torch.zeros(BATCH, 4, 16))


def test_the_attention_z_loss_refuses_the_kernel_that_cannot_give_it():
    with pytest.raises(ValueError, match="z-loss needs attention_kernel sdpa"):
        small_net(Decoder, attention_kernel="flex")(tokens(), return_output=True, with_z_loss=True)
