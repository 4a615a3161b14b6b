"""Predicted tokens in a number of slots that is known on the host, against as many slots as there are tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nar_scale.data import Batch
from nar_scale.model import Encoder, SequenceParallelContext
from nar_scale.objectives import BlockDiffusionWrapper
from nar_scale.objectives.predicted import IGNORED, PredictedTokens, slots_for
from tests.model.helpers import small_net

from .helpers import batch_of, random_tokens, small_ar, small_nar
from .test_terms import LENGTHS, WRAPPERS, ragged_batch

N = 12
WRAPPERS = {
    **WRAPPERS,
    "blocks": lambda: BlockDiffusionWrapper(small_net(Encoder, max_seq_len=N), mask_id=10, block_size=4),
    "chunks": lambda: small_nar(net={"logits_chunk_size": 40}, schedule="cosine"),
}
LENGTH_CASES = {"ragged": LENGTHS, "full": torch.full((8,), N), "none": torch.tensor([0, 0])}


def as_if_moved(batch):
    """The batch, as if it had been copied to a device, where the number of its predicted tokens is not known."""
    moved = batch_of(batch.tokens, batch.lengths)
    object.__setattr__(moved, "on_host", batch)
    return moved


def gradients(wrapper):
    return {name: p.grad for name, p in wrapper.named_parameters() if p.grad is not None}


def share_of(rank, size):
    return SequenceParallelContext(rank, size, lambda values: values)


@pytest.fixture
def slots(monkeypatch):
    """How many slots and tokens there were in each forward pass."""
    seen, of = [], PredictedTokens.of

    def recording(predicted, sequence_parallel, slots=None):
        found = of(predicted, sequence_parallel, slots)
        seen.append((len(found.positions), int(found.filled.sum())))
        return found

    monkeypatch.setattr(PredictedTokens, "of", recording)
    return seen


@pytest.mark.parametrize("make", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("lengths", LENGTH_CASES.values(), ids=LENGTH_CASES)
def test_empty_slots_change_no_loss_and_no_gradient(make, lengths, slots):
    exact, padded = make().train(), make().train()
    batch = ragged_batch(lengths)
    expected, terms = exact.loss_terms(batch, seed=3), padded.loss_terms(as_if_moved(batch), seed=3)
    expected.total().backward()
    terms.total().backward()
    (exact_slots, exact_count), (padded_slots, padded_count) = slots
    assert exact_slots == exact_count == padded_count
    assert padded_slots >= exact_slots
    if type(exact) is not type(small_ar()) or lengths is LENGTHS:
        assert padded_slots > exact_slots  # else nothing is tested
    assert torch.equal(terms.counts, expected.counts)
    # the sums run over more elements, and matrix products over more rows: rounding alone may differ
    for ours, wanted in ((terms.sums, expected.sums), (terms.moments, expected.moments)):
        torch.testing.assert_close(ours, wanted, rtol=2e-6, atol=1e-6)
    for name, wanted in expected.metrics.items():
        torch.testing.assert_close(terms.metrics[name], wanted, rtol=2e-6, atol=1e-6)
    ours = gradients(padded)
    assert ours.keys() == gradients(exact).keys()
    for name, wanted in gradients(exact).items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("spare", [None, 0, 5])
def test_ranks_that_share_sequences_find_all_tokens_in_order(size, spare):
    mask = torch.rand(5, N, generator=torch.Generator().manual_seed(0)) < 0.4
    values = torch.arange(5 * N).view(5, N)
    everywhere = []
    for rank in range(size):
        sequence_parallel = share_of(rank, size)
        count = int(sequence_parallel.shard(mask).sum())
        found = PredictedTokens.of(mask, sequence_parallel, None if spare is None else count + spare)
        assert len(found.positions) == count + (spare or 0)
        assert found.filled.tolist() == [True] * count + [False] * (spare or 0)
        mine = found.positions[:count]
        assert (mine.diff() > 0).all()
        assert torch.equal(found.select_local(sequence_parallel.shard(values)), found.select(values))
        assert found.answers(values).tolist() == mine.tolist() + [IGNORED] * (spare or 0)
        assert torch.equal(found.rows(5)[:count], mine // N)
        assert torch.equal(found.spread(torch.arange(5) + 7.0)[count:], torch.zeros(spare or 0))
        everywhere += mine.tolist()
    assert sorted(everywhere) == mask.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("spare", [0, 4])
def test_what_empty_slots_write_is_lost(spare):
    mask = torch.tensor([[True, False, False], [False, True, False]])
    found = PredictedTokens.of(mask, slots=2 + spare)
    new = torch.tensor([7, 8, *range(90, 90 + spare)])
    assert found.replace_in(torch.zeros(2, 3, dtype=torch.int64), new).tolist() == [[7, 0, 0], [0, 8, 0]]


def test_too_few_slots_are_an_error():
    with pytest.raises(ValueError, match="more than 2 tokens"):
        PredictedTokens.of(torch.ones(1, 3, dtype=torch.bool), slots=2)


def test_few_numbers_of_slots_occur():
    total = 16 * 2048
    found = [slots_for(torch.tensor(count), total) for count in range(0, total + 1, 7)]
    assert all(count <= slots for count, slots in zip(range(0, total + 1, 7), found))
    assert len(set(found)) == 32
    assert max(found) == total
    assert max(slots - count for count, slots in zip(range(0, total + 1, 7), found)) <= 1024 + 16
    assert slots_for(torch.tensor(0), 0) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda **net: small_nar(schedule="cosine", net=net),
        lambda **net: small_nar(masking="bernoulli", net=net),
        lambda **net: BlockDiffusionWrapper(small_net(Encoder, **net), mask_id=10, block_size=4),
        lambda **net: small_ar(net=net),
    ],
    ids=["exact", "bernoulli", "blocks", "ar"],
)
@pytest.mark.parametrize("size", [1, 2])
def test_the_host_counts_what_the_device_will_predict(make, size, monkeypatch):
    n, rows = 96, 64
    wrapper = make(max_seq_len=n).train()
    batch = batch_of(random_tokens(rows, n), torch.arange(rows) + n - rows + 1)
    masks, of = [], PredictedTokens.of
    monkeypatch.setattr(PredictedTokens, "of", lambda mask, *more: masks.append(mask) or of(mask, *more))
    wrapper.loss_terms(batch, seed=5)
    seed = () if wrapper.net.causal else (5,)
    mask = F.pad(masks[0], (0, -masks[0].shape[1] % size))
    for rank in range(size):
        sequence_parallel = share_of(rank, size)
        count = int(sequence_parallel.shard(mask).sum())
        slots = wrapper._slots(as_if_moved(batch), sequence_parallel, *seed)
        assert count <= slots < count + 16 + 256
        assert slots % 128 == 0
        assert wrapper._slots(batch, sequence_parallel, *seed) is None


class Copies(TorchDispatchMode):
    """Operators with results on another device than their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        devices = {each.device for each in tree_leaves((arguments, options, result)) if isinstance(each, torch.Tensor)}
        if len(devices) > 1 and function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            self.found.append(function)
        return result


def with_documents(batch):
    return Batch(
        *(batch.tokens, batch.lengths, batch.sample_ids, batch.epochs, batch.positions),
        documents=torch.arange(N).expand(len(batch.tokens), N) // 5,
    )


@pytest.mark.parametrize("kind", [*WRAPPERS, "classes", "documents", "documents_ar"])
def test_the_host_reads_nothing_and_copies_nothing_in_a_step(kind):
    """On a device that has shapes alone: asking for a value is an error there, as it is a wait on a GPU."""
    batch = ragged_batch()
    if kind == "classes":
        wrapper = small_nar(num_classes=3, condition_drop_prob=0.5)
        batch = batch_of(batch.tokens, batch.lengths, classes=torch.arange(8) % 3)
    elif kind.startswith("documents"):
        wrapper, batch = (small_ar() if kind.endswith("ar") else small_nar()), with_documents(batch)
    else:
        wrapper = WRAPPERS[kind]()
    wrapper.train().to("meta")
    for values in ("nonzero", "item"):
        with pytest.raises((RuntimeError, NotImplementedError)):
            getattr(torch.ones(1, device="meta"), values)()
    moved = batch.to("meta")
    with Copies() as copies:
        counts = wrapper.counts(moved, seed=3)
        terms = wrapper.loss_terms(moved, seed=3)
        terms.total(counts).backward()
        torch.ones(2).to("meta")  # the one copy, which shows that they are seen
    assert copies.found == [torch.ops.aten._to_copy.default]
    assert terms.sums.device.type == counts.device.type == "meta"


def test_the_host_reads_nothing_of_a_tensor_whose_tokens_are_all_predicted():
    wrapper = small_ar().train().to("meta")
    loss = wrapper(random_tokens(3, N).to("meta"))
    loss.backward()
    assert loss.shape == ()
    with pytest.raises(NotImplementedError):  # how many there are of these, it must ask
        wrapper(random_tokens(3, N).to("meta"), lens=torch.tensor([3, 4, 5]).to("meta"))


def test_a_batch_remembers_where_it_came_from():
    batch = ragged_batch()
    assert batch.on_host is None
    assert batch.to("cpu").on_host is None
    assert batch.to("meta").on_host is batch
    assert batch.to("meta").to("meta").on_host is batch
