"""Packed documents: each is trained on as if it stood alone, in every pass, whatever stands beside it."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.backends.debugging import aot_eager

from nar_scale.evaluation import evaluate_likelihood
from nar_scale.model import Encoder
from nar_scale.objectives import BlockDiffusionWrapper
from nar_scale.objectives.denoising import GuidedNetwork
from nar_scale.objectives.documents import document_positions, within_documents
from tests.errors import refused
from tests.model.helpers import small_net

from .helpers import batch_of, random_tokens, small_ar, small_nar

MASK_ID, N = 10, 12
RAGGED = [[5, 4, 3], [12], [1, 6, 2], [2, 1, 1, 8], [], [7]]
"""Lengths of the documents of each sample; some samples are shorter than 12."""
FULL = [[5, 4, 3], [12], [1, 9, 2], [2, 1, 1, 8]]
BLOCKS = [[4, 8], [2, 6, 4], [12], [6, 2], []]

NETS = {
    "rotary": {},
    "learned": {"rotary": False},
    "window": {"window": 3, "kv_heads": 1},
    "scaled": {"rotary_dim": 4, "rotary_interpolation_factor": 2.0, "qk_norm": True},
    "checkpointed": {"activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "compiled": {"compile": True},
}
NON_AUTOREGRESSIVE = {
    "mdlm": {},
    "bernoulli": {"masking": "bernoulli", "schedule": "cosine"},
    "maskgit": {"use_simple_mdlm_loss_weight": False},
    "corrupted": {"no_replace_prob": 0.3, "random_token_prob": 0.3},
    "self_conditioned": {"self_cond": True, "self_cond_train_prob": 0.5},
    "self_critic": {"self_token_critic": True},
    "self_conditioned_critic": {"self_cond": True, "self_token_critic": True, "num_classes": 3},
    "class": {"num_classes": 3, "condition_drop_prob": 0.5},
}


def packed(rows, seed=0):
    """A batch whose samples hold documents of these lengths."""
    tokens = random_tokens(len(rows), N, seed=seed)
    documents = torch.zeros_like(tokens)
    lengths = torch.tensor([sum(row) for row in rows])
    for sample, row in enumerate(rows):
        numbers = torch.arange(len(row)).repeat_interleave(torch.tensor(row, dtype=torch.int64))
        documents[sample, : lengths[sample]] = numbers
        tokens[sample, lengths[sample] :] = 0
    return replace(batch_of(tokens, lengths), documents=documents)


def spans(rows):
    """Sample, first place and place behind the last of each document."""
    for sample, row in enumerate(rows):
        start = 0
        for length in row:
            yield sample, start, start + length
            start += length


def alone(rows, run, like):
    """What `run(sample, start, end)` yields for each document by itself, `[1, length, dim]`, in its place."""
    out = like.new_zeros(*like.shape[:2], 0)
    pieces = {(sample, start, end): run(sample, start, end) for sample, start, end in spans(rows)}
    if pieces:
        out = like.new_zeros(*like.shape[:2], next(iter(pieces.values())).shape[-1])
    for (sample, start, end), piece in pieces.items():
        place = torch.zeros(out.shape[:2], dtype=torch.bool)
        place[sample, start:end] = True
        out = out.masked_scatter(place[..., None], piece)
    return out


def run_documents_alone(net, rows):
    """Make a net run the documents of a batch one by one, cut out, without knowing of any other."""
    whole = net.forward

    def forward(x, *, sum_embeds=None, mask=None, **options):
        assert not set(options) & {"documents", "positions"}

        def run(sample, start, end):
            embeds = sum_embeds if sum_embeds is None else sum_embeds[sample : sample + 1]
            if embeds is not None and embeds.shape[1] > 1:
                embeds = embeds[:, start:end]
            return whole(x[sample : sample + 1, start:end], sum_embeds=embeds, **options)

        return alone(rows, run, torch.zeros(*x.shape, 1))

    net.forward = forward


def gradients(wrapper, terms):
    terms.total().backward()
    return {name: parameter.grad for name, parameter in wrapper.named_parameters() if parameter.grad is not None}


def assert_same_training(packed, expected):
    """Loss terms and gradients agree; `packed` and `expected` are each a wrapper with its terms."""
    for field in ("sums", "moments"):
        torch.testing.assert_close(getattr(packed[1], field), getattr(expected[1], field), rtol=1e-4, atol=1e-4)
    assert torch.equal(packed[1].counts, expected[1].counts)
    for name, metric in expected[1].metrics.items():
        torch.testing.assert_close(packed[1].metrics[name], metric, rtol=1e-4, atol=1e-4)
    got, wanted = gradients(*packed), gradients(*expected)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(autouse=True)
def _quick_compiler(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=aot_eager))
    yield
    torch._dynamo.reset()


def ar(**options):
    return attentive(small_ar(**options))


def nar(**options):
    return attentive(small_nar(**options))


def blocks_of(block_size, net=None, **options):
    options = {"no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    net = small_net(Encoder, **(net or {}))
    return attentive(BlockDiffusionWrapper(net, mask_id=MASK_ID, block_size=block_size, **options))


@torch.no_grad()
def attentive(wrapper):
    """Make the answers depend on the other tokens and on their places."""
    for block in wrapper.net.attn_layers.blocks:
        block.attention.to_out.weight.mul_(10)
        block.attention.to_queries.weight.mul_(3)
    if wrapper.net.pos_emb is not None:
        wrapper.net.pos_emb.weight.mul_(50)
    return wrapper


@pytest.mark.parametrize("rows", [RAGGED, FULL], ids=["padded", "full"])
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_autoregressive_documents_are_as_if_each_ran_alone(net, rows):
    batch = packed(rows)
    wrapper, reference = ar(net=net).train(), ar(net={**net, "compile": False}).train()
    terms = wrapper.loss_terms(batch)
    sums = [reference(batch.tokens[i : i + 1, a:b]) * (b - a - 1) for i, a, b in spans(rows) if b - a > 1]
    count = sum(b - a - 1 for _, a, b in spans(rows))
    torch.testing.assert_close(terms.sums[0], sum(sums), rtol=1e-5, atol=1e-5)
    assert terms.counts.tolist() == wrapper.counts(batch).tolist() == [count]
    (sum(sums) / count).backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, gradient in gradients(wrapper, terms).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [NETS["rotary"], NETS["learned"], NETS["window"]], ids=["rotary", "learned", "window"])
def test_logits_of_an_autoregressive_document_are_those_of_it_alone(net):
    batch, wrapper = packed(RAGGED), ar(net=net).eval()
    _, (logits, _) = wrapper(batch.tokens, lens=batch.lengths, documents=batch.documents, return_outputs=True)
    for sample, start, end in spans(RAGGED):
        if end - start == 1:
            continue
        expected = wrapper.net(batch.tokens[sample : sample + 1, start : end - 1])[0]
        torch.testing.assert_close(logits[sample, start : end - 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", [{"rotary": False}, {}], ids=["learned", "rotary"])
def test_further_autoregressive_terms_leave_out_what_is_not_predicted(net):
    batch = packed(RAGGED)
    wrapper = ar(net={**net, "add_continuous_pred_head": True}, add_attn_z_loss=True).train()
    terms = wrapper.loss_terms(batch)
    count = sum(b - a - 1 for _, a, b in spans(RAGGED))
    assert terms.counts.tolist() == wrapper.counts(batch).tolist() == [count] * 3
    singles = [wrapper.loss_terms(batch_of(batch.tokens[i : i + 1, a:b])) for i, a, b in spans(RAGGED) if b - a > 1]
    torch.testing.assert_close(terms.sums, sum(single.sums for single in singles), rtol=1e-5, atol=1e-4)


def test_a_document_never_loses_its_first_token_to_forgetful_masking():
    batch, wrapper, masks = packed(RAGGED), ar(mask_prob=0.5).train(), []
    wrapper.net.register_forward_pre_hook(lambda _, __, options: masks.append(options["mask"]), with_kwargs=True)
    for seed in range(20):
        wrapper.loss_terms(batch, seed=seed)
    for sample, start, end in spans(RAGGED):
        assert all(bool(mask[sample, start]) for mask in masks if start < N - 1)
        if end - start > 3:
            assert any(not bool(mask[sample, start + 1]) for mask in masks)
    assert all(int((~mask).sum(dim=1).max()) == (N - 1) // 2 for mask in masks)


def non_autoregressive_pair(options, net, rows):
    """A wrapper, and its twin whose net runs every document by itself; a batch for one and one for the other."""
    batch = packed(rows)
    if "num_classes" in options:
        batch = replace(batch, classes=torch.arange(len(rows)) % 3)
    wrapper, twin = nar(net=net, **options), nar(net={**net, "compile": False}, **options)
    twin.load_state_dict(wrapper.state_dict())  # what is drawn beside the net has another seed
    run_documents_alone(twin.net, rows)
    return wrapper, twin, batch, replace(batch, documents=None)


@pytest.mark.parametrize("rows", [RAGGED, FULL], ids=["padded", "full"])
@pytest.mark.parametrize("options", NON_AUTOREGRESSIVE.values(), ids=NON_AUTOREGRESSIVE)
def test_non_autoregressive_documents_are_as_if_each_ran_alone(options, rows):
    wrapper, twin, batch, plain = non_autoregressive_pair(options, {}, rows)
    wrapper.train(), twin.train()
    terms, expected = wrapper.loss_terms(batch, seed=3), twin.loss_terms(plain, seed=3)
    assert torch.equal(terms.counts, wrapper.counts(batch, seed=3))
    if "use_simple_mdlm_loss_weight" not in options:
        assert terms.counts[0] == sum(map(sum, rows))
    assert_same_training((wrapper, terms), (twin, expected))


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_every_net_takes_documents(net):
    options = {"self_cond": True, "self_token_critic": True}
    wrapper, twin, batch, plain = non_autoregressive_pair(options, net, RAGGED)
    wrapper.train(), twin.train()
    assert_same_training((wrapper, wrapper.loss_terms(batch, seed=3)), (twin, twin.loss_terms(plain, seed=3)))


@pytest.mark.parametrize("net", [{}, {"rotary": False}], ids=["rotary", "learned"])
def test_a_critic_with_a_net_of_its_own_judges_documents_apart(net):
    batch = packed(RAGGED)
    wrapper, twin = (nar(net=net, token_critic=small_net(Encoder, logits_dim=1, **net)).train() for _ in range(2))
    run_documents_alone(twin.net, RAGGED)
    run_documents_alone(twin.token_critic, RAGGED)
    terms, expected = wrapper.loss_terms(batch, seed=1), twin.loss_terms(replace(batch, documents=None), seed=1)
    assert_same_training((wrapper, terms), (twin, expected))


@pytest.mark.parametrize("net", [name for name in NETS if name != "window"])
@pytest.mark.parametrize("options", [{}, {"use_simple_mdlm_loss_weight": False}], ids=["mdlm", "maskgit"])
def test_blocks_of_documents_are_as_if_each_ran_alone(options, net):
    batch = packed(BLOCKS)
    wrapper = blocks_of(2, net=NETS[net], **options).train()
    twin = blocks_of(2, net={**NETS[net], "compile": False}, **options).train()
    whole = twin._embed

    def embed(visible, true, noise, classes, net_kwargs):
        def run(sample, start, end):
            copies = (copy[sample : sample + 1, start:end] for copy in (visible, true))
            return whole(*copies, noise, classes, {})

        return alone(BLOCKS, run, torch.zeros(*true.shape, 1))

    twin._embed = embed
    terms, expected = wrapper.loss_terms(batch, seed=5), twin.loss_terms(replace(batch, documents=None), seed=5)
    assert torch.equal(terms.counts, wrapper.counts(batch, seed=5))
    assert_same_training((wrapper, terms), (twin, expected))


WRAPPERS = {
    "autoregressive": ar,
    "masked": nar,
    "self_conditioned_critic": lambda **options: nar(self_cond=True, self_token_critic=True, **options),
    "blocks": lambda **options: blocks_of(4, **options),
    "one_block": lambda **options: blocks_of(N, **options),
}
KERNELS = {"rotary": {}, "learned": {"rotary": False}, "flex": {"attention_kernel": "flex"}}


@torch.no_grad()
def outputs(wrapper, batch):
    """Embeddings `[batch, ...]` of every call of the net."""
    seen = []
    hook = wrapper.net.attn_layers.register_forward_hook(lambda _, __, output: seen.append(output[0].clone()))
    wrapper.loss_terms(batch, seed=2)
    hook.remove()
    return seen


@pytest.mark.parametrize("net", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_a_document_never_depends_on_another(wrapper, net):
    wrapper, batch = wrapper(net=net).eval(), packed(RAGGED)
    before = outputs(wrapper, batch)
    for number in range(3):
        inside = (batch.documents == number) & (torch.arange(N) < batch.lengths[:, None])
        after = outputs(wrapper, replace(batch, tokens=torch.where(inside, (batch.tokens + 1) % 10, batch.tokens)))
        moved = False
        for old, new in zip(before, after, strict=True):
            changed = torch.cat((inside, inside), dim=1)[:, : old.shape[1]]
            present = (torch.arange(2 * N) % N < batch.lengths[:, None])[:, : old.shape[1]]
            assert torch.equal(old[present & ~changed], new[present & ~changed])
            moved |= not torch.equal(old[changed], new[changed])
        assert moved


@pytest.mark.parametrize("net", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@torch.no_grad()
def test_padding_is_not_seen(wrapper, net):
    wrapper, batch = wrapper(net=net).eval(), packed(RAGGED)
    padding = torch.arange(N) >= batch.lengths[:, None]
    changed = replace(batch, tokens=torch.where(padding, 7, batch.tokens))
    assert torch.equal(wrapper.loss_terms(batch, seed=2).sums, wrapper.loss_terms(changed, seed=2).sums)
    assert wrapper.loss_terms(batch, seed=2).sums.isfinite().all()


@pytest.mark.parametrize("net", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("number", [0, 5])
@torch.no_grad()
def test_one_document_is_none(wrapper, net, number):
    wrapper = wrapper(net=net).eval()
    whole = batch_of(random_tokens(4, N), torch.tensor([12, 9, 1, 0]))
    one = replace(whole, documents=torch.where(torch.arange(N) < whole.lengths[:, None], number, 0))
    terms, expected = wrapper.loss_terms(one, seed=2), wrapper.loss_terms(whole, seed=2)
    torch.testing.assert_close(terms.sums, expected.sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(terms.counts, expected.counts)
    assert torch.equal(wrapper.counts(one, seed=2), wrapper.counts(whole, seed=2))


def test_tensors_bring_their_documents_as_they_do_their_lengths():
    batch = packed(RAGGED)
    arguments = {"lens": batch.lengths, "documents": batch.documents}
    terms = ar().loss_terms(batch)
    assert torch.equal(ar()(batch.tokens, **arguments), terms.total())
    for wrapper in (nar(use_simple_mdlm_loss_weight=False), blocks_of(2)):
        seen = []
        wrapper.net.register_forward_pre_hook(lambda _, __, given, seen=seen: seen.append(given), with_kwargs=True)
        wrapper.loss_terms(batch), wrapper(batch.tokens, **arguments)
        for name in ("documents", "positions", "mask"):
            assert torch.equal(seen[0][name], seen[1][name])


@torch.no_grad()
def test_documents_are_filled_in_as_if_each_were_alone():
    options = {"num_classes": 3, "self_cond": True, "self_token_critic": True, "steps": 3}
    wrapper, twin, batch, _ = non_autoregressive_pair(options, {"rotary": False}, FULL)
    prompt = torch.where(torch.arange(N) % 3 > 0, MASK_ID, batch.tokens)
    filled = []
    for each, documents in ((wrapper, batch.documents), (twin, None), (wrapper, None)):
        torch.manual_seed(4)
        filled.append(each.generate(prompts=prompt, classes=batch.classes, documents=documents))
    assert torch.equal(filled[0], filled[1])
    assert not torch.equal(filled[0], filled[2])


@torch.no_grad()
def test_both_passes_of_guidance_keep_documents_apart():
    wrapper = nar(num_classes=3, net={"rotary": False}).eval()
    batch, classes = packed(FULL), torch.arange(len(FULL)) % 3
    apart = within_documents(wrapper.net, batch.documents, {})
    hidden = GuidedNetwork(wrapper, batch.tokens, 2.5, classes, apart).embed(batch.tokens)
    for sample, start, end in spans(FULL):
        chosen, document = slice(sample, sample + 1), batch.tokens[sample : sample + 1, start:end]
        expected = GuidedNetwork(wrapper, document, 2.5, classes[chosen]).embed(document)
        torch.testing.assert_close(hidden[chosen, start:end], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_likelihood_is_that_of_the_documents_without_their_first_tokens():
    batch, wrapper = packed(RAGGED), ar().eval()
    likelihood = evaluate_likelihood(wrapper, [batch, packed(FULL, seed=1)], bytes_per_token=2.0)
    losses = []
    for rows, tokens in ((RAGGED, batch.tokens), (FULL, packed(FULL, seed=1).tokens)):
        for sample, start, end in spans(rows):
            document = tokens[sample : sample + 1, start:end]
            if end - start > 1:
                losses.append(F.cross_entropy(wrapper.net(document[:, :-1])[0], document[0, 1:], reduction="none"))
    losses = torch.cat(losses)
    assert (likelihood.tokens, likelihood.sequences) == (len(losses), 9)
    assert likelihood.nats_per_token == pytest.approx(losses.mean().item(), rel=1e-5)
    assert likelihood.bits_per_byte == pytest.approx(losses.mean().item() / math.log(2) / 2, rel=1e-5)


def test_the_bound_counts_every_token_of_every_document():
    likelihood = evaluate_likelihood(nar(), [packed(RAGGED)])
    assert (likelihood.tokens, likelihood.kind) == (sum(map(sum, RAGGED)), "bound")


def test_positions_start_anew_with_each_document():
    documents = torch.tensor([[0, 0, 0, 1, 1, 2], [3, 4, 4, 4, 7, 7], [0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]])
    expected = [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 1, 2]]
    assert document_positions(documents).tolist() == expected


def test_samples_may_be_longer_than_learned_positions_but_documents_may_not():
    net = {"rotary": False, "max_seq_len": 6}
    tokens = random_tokens(1, N)
    documents = torch.tensor([[0] * 6 + [1] * 6])
    wrapper = ar(net=net)
    expected = (wrapper(tokens[:, :6]) + wrapper(tokens[:, 6:])) / 2
    torch.testing.assert_close(wrapper(tokens, documents=documents), expected, rtol=1e-5, atol=1e-5)
    with refused(ValueError, "document", "max_seq_len 6"):
        wrapper(tokens, documents=torch.tensor([[0] * 8 + [1] * 4]))


@pytest.mark.parametrize("wrapper", [ar, nar, lambda: blocks_of(4)], ids=["autoregressive", "masked", "blocks"])
def test_what_does_not_go_together_is_refused(wrapper):
    wrapper, tokens = wrapper(), random_tokens(2, N)
    documents = torch.arange(N).expand(2, N) // 5
    with refused(ValueError, "documents", (2, 11), (2, 12)):
        wrapper(tokens, documents=documents[:, 1:])
    with refused(ValueError, "document numbers"):
        wrapper(tokens, documents=documents.flip(1))
    with refused(ValueError, "documents", "prepend_embeds"):
        wrapper(tokens, documents=documents, prepend_embeds=torch.zeros(2, 3, 16))


def test_a_prefix_of_the_sample_is_refused():
    batch, wrapper = packed(FULL), nar(prefix_length=2)
    with refused(ValueError, "documents", "prefix_length"):
        wrapper.loss_terms(batch)
    with refused(ValueError, "documents", "prefix_length"):
        wrapper.generate(prompts=batch.tokens, documents=batch.documents)


def test_block_diffusion_generates_one_document_a_sequence():
    with refused(ValueError, "block diffusion", "documents"):
        blocks_of(4).generate(prompts=torch.full((1, N), MASK_ID), documents=torch.zeros(1, N, dtype=torch.int64))


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@torch.no_grad()
def test_both_kernels_keep_documents_apart(wrapper):
    flex, dense = (
        wrapper(net={"attention_kernel": kernel}).eval().loss_terms(packed(RAGGED), seed=2).sums
        for kernel in ("flex", "sdpa")
    )
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
@torch.no_grad()
def test_without_documents_the_net_is_asked_as_before(wrapper):
    wrapper, asked = wrapper(), []
    wrapper.net.register_forward_pre_hook(lambda _, __, options: asked.append(options), with_kwargs=True)
    wrapper.loss_terms(batch_of(random_tokens(2, N)))
    for options in asked:
        assert options.get("documents") is None
        assert options.get("positions") is None or options["positions"].tolist() == [*range(N)] * 2
