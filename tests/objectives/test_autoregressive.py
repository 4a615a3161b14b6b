import pytest
import torch
import torch.nn.functional as F

from nar_scale.errors import ConfigError
from nar_scale.model import Encoder
from nar_scale.objectives import AutoregressiveWrapper
from tests.errors import refused
from tests.model.helpers import TableNet, small_net

from .helpers import batch_of, random_tokens, small_ar

N = 12


def visible_tokens(wrapper):
    """Attention masks of every call of the net."""
    seen = []
    wrapper.net.register_forward_pre_hook(
        lambda _, arguments, options: seen.append(options.get("mask")), with_kwargs=True
    )
    return seen


def test_the_loss_is_the_cross_entropy_of_the_next_token():
    wrapper, tokens = small_ar(), random_tokens(6, N)
    expected = F.cross_entropy(wrapper.net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])
    torch.testing.assert_close(wrapper(tokens), expected)
    torch.testing.assert_close(wrapper.loss_terms(batch_of(tokens)).total(), expected)
    loss, (logits, output) = wrapper(tokens, return_outputs=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, wrapper.net(tokens[:, :-1]))
    torch.testing.assert_close(wrapper.net.to_logits(output.embeddings), logits)


def test_ignored_tokens_and_lengths_do_not_count():
    wrapper, tokens = small_ar(ignore_index=-1, pad_value=3), random_tokens(4, N)
    lengths = torch.tensor([12, 7, 1, 2])
    targets = tokens.masked_fill(torch.arange(N) >= lengths[:, None], -1)[:, 1:]
    expected = F.cross_entropy(wrapper.net(tokens[:, :-1]).transpose(1, 2), targets, ignore_index=-1)
    torch.testing.assert_close(wrapper(tokens, lens=lengths), expected)
    torch.testing.assert_close(wrapper.loss_terms(batch_of(tokens, lengths)).total(), expected)
    assert wrapper.loss_terms(batch_of(tokens, lengths)).counts.tolist() == [11 + 6 + 0 + 1]

    gaps = tokens.clone()
    gaps[:, 5] = -1
    expected = F.cross_entropy(
        wrapper.net(gaps[:, :-1].clamp(min=0).masked_fill(gaps[:, :-1] == -1, 3)).transpose(1, 2),
        gaps[:, 1:],
        ignore_index=-1,
    )
    torch.testing.assert_close(wrapper(gaps), expected)


def test_the_loss_is_the_exact_likelihood_of_a_known_joint():
    net = TableNet(4, 3, causal=True)
    tokens = random_tokens(50, 4, num_tokens=3)
    joint = net.table.detach().double().log_softmax(dim=-1)
    codes = net.code(tokens)
    nats = -sum(joint[codes[:, i], i, tokens[:, i + 1]] for i in range(3))
    terms = AutoregressiveWrapper(net).loss_terms(batch_of(tokens))
    assert terms.sums.item() == pytest.approx(nats.sum().item(), rel=1e-5)
    expected = [nats.square().sum().item(), 3 * nats.sum().item(), 9 * 50]
    assert terms.moments.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_prefix_of_embeddings_is_seen_but_not_predicted():
    wrapper, tokens = small_ar(mask_prob=0.3, add_attn_z_loss=True), random_tokens(4, N)
    prefix = wrapper.net.token_emb(random_tokens(4, 3, seed=9))
    wrapper.eval()
    wrapper.add_attn_z_loss = False
    logits = wrapper.net(tokens[:, :-1], prepend_embeds=prefix)[:, 3:]
    torch.testing.assert_close(
        wrapper(tokens, prepend_embeds=prefix), F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])
    )
    wrapper.train()
    wrapper.add_attn_z_loss = True
    masks = visible_tokens(wrapper)
    assert wrapper(tokens, prepend_embeds=prefix).isfinite()
    assert masks[0].shape == (4, 3 + N - 1)
    assert masks[0][:, :4].all()


@pytest.mark.parametrize(("mask_prob", "hidden"), [(0.0, 0), (0.15, 1), (0.5, 5), (0.99, 10)])
def test_the_exact_number_is_hidden_and_never_the_first(mask_prob, hidden):
    wrapper, batch = small_ar(mask_prob=mask_prob), batch_of(random_tokens(300, N))
    masks = visible_tokens(wrapper)
    wrapper.train().loss_terms(batch)
    wrapper.eval().loss_terms(batch)
    assert masks[1] is None
    if not hidden:
        assert masks[0] is None
        return
    assert ((~masks[0]).sum(dim=1) == hidden).all()
    assert masks[0][:, 0].all()
    assert (~masks[0])[:, 1:].float().mean(dim=0).tolist() == pytest.approx([hidden / 10] * 10, abs=0.13)


def test_hidden_tokens_are_not_attended():
    wrapper, tokens = small_ar(mask_prob=0.5).train(), random_tokens(4, N)
    masks = visible_tokens(wrapper)
    loss = wrapper.loss_terms(batch_of(tokens)).total()
    logits = wrapper.net(tokens[:, :-1], mask=masks[0])
    torch.testing.assert_close(loss, F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:]))
    assert not torch.allclose(loss, wrapper.eval()(tokens))


def test_z_loss_and_next_embedding_loss_by_hand():
    wrapper = small_ar(
        net={"add_continuous_pred_head": True, "attn_z_loss_weight": 0.01, "heads": 4, "kv_heads": 2, "rotary": False},
        add_attn_z_loss=True,
        next_embed_loss_weight=0.2,
    )
    tokens, lengths = random_tokens(3, N), torch.tensor([12, 5, 1])
    net, inputs = wrapper.net, tokens[:, :-1]
    predicted = torch.arange(1, N) < lengths[:, None]

    x, z_loss = net.token_emb(inputs) + net.pos_emb(torch.arange(N - 1)), torch.zeros(3, N - 1)
    for block in net.attn_layers.blocks:
        attention, normed = block.attention, block.attention_norm(x)
        q = attention.to_queries(normed).unflatten(-1, (4, 4)).transpose(1, 2)
        k = attention.to_keys(normed).unflatten(-1, (2, 4)).transpose(1, 2)
        for head in range(4):
            logits = q[:, head] @ k[:, head // 2].transpose(1, 2) / 4**0.5
            future = torch.ones(N - 1, N - 1, dtype=torch.bool).triu(1)
            z_loss += logits.masked_fill(future, -torch.inf).logsumexp(dim=-1) ** 2
        x = block(x, angles=None, is_causal=True)[0]
    embeddings = net.attn_layers.final_norm(x)
    ce = F.cross_entropy(net.to_logits(embeddings)[predicted], tokens[:, 1:][predicted])
    truth = net.token_emb(tokens[:, 1:]) + net.pos_emb(torch.arange(1, N))
    embed = (net.to_next_embed_pred(embeddings) - truth).abs().mean(dim=-1)[predicted].mean()
    expected = ce + 0.01 * z_loss[predicted].mean() + 0.2 * embed

    loss = wrapper(tokens, lens=lengths)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert wrapper.term_names == ("token_loss", "attention_z_loss", "next_embed_loss")
    loss.backward()
    assert net.to_next_embed_pred[0].weight.grad.any()


def test_the_embedding_to_predict_is_not_pulled_towards_the_prediction():
    wrapper = small_ar(net={"add_continuous_pred_head": True})
    tokens = torch.tensor([[1, 2]])
    wrapper.loss_terms(batch_of(tokens)).sums[1].backward()
    gradient = wrapper.net.token_emb.weight.grad
    assert gradient[1].any()
    assert not gradient[2].any()


def test_it_learns():
    wrapper = small_ar()
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=1e-2)
    tokens = (torch.arange(N) + torch.arange(10)[:, None]) % 10
    for _ in range(40):
        optimizer.zero_grad()
        wrapper(tokens).backward()
        optimizer.step()
    assert wrapper(tokens).item() < 0.2


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: AutoregressiveWrapper(small_net(Encoder)), ConfigError, ["Decoder"]),
        (lambda: small_ar(mask_prob=1.0), ConfigError, ["mask_prob", 1.0]),
        (lambda: small_ar(mask_prob=-0.1), ConfigError, ["mask_prob", -0.1]),
        (lambda: small_ar().generate(torch.zeros(2, 0, dtype=torch.long), 3), ValueError, ["prompt", "empty"]),
        (lambda: small_ar().generate([torch.tensor([1]), torch.tensor([])], 3), ValueError, ["prompt", "empty"]),
        (lambda: small_ar().generate([], 3), ValueError, ["list", "empty"]),
        (
            lambda: small_ar().generate(torch.tensor([[1]]), 3, filter_logits_fn="top_q"),
            ConfigError,
            ["top_q", "top_k", "top_p", "min_p", "top_a"],
        ),
    ],
)
def test_what_cannot_work_is_refused(make, error, named):
    with refused(error, *named):
        make()


def test_a_mask_of_the_caller_holds_beside_hidden_tokens():
    wrapper = small_ar(mask_prob=0.3).train()
    tokens = random_tokens(3, N)
    mask = torch.ones(3, N - 1, dtype=torch.bool)
    mask[:, 1:4] = False
    losses = []
    for asked in ({}, {"mask": mask}):
        torch.manual_seed(0)
        losses.append(wrapper(tokens, **asked))
    assert losses[0] != losses[1]


def test_a_continuous_head_with_learned_positions_needs_one_for_the_last_target():
    wrapper = small_ar(net={"add_continuous_pred_head": True, "rotary": False})
    with refused(ValueError, 13, "max_seq_len 12"):
        wrapper(random_tokens(2, 13))
