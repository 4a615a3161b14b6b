"""Classes and given prefixes: what the net is told of them, in training, without them, and under guidance."""

import pytest
import torch
import torch.nn.functional as F

from nar_scale.masking import Noise
from nar_scale.model import Encoder
from nar_scale.objectives import BlockDiffusionWrapper
from tests.errors import refused
from tests.model.helpers import small_net

from .helpers import batch_of, random_tokens, rows_of, small_nar

MASK_ID, N, CLASSES, PREFIX = 10, 12, 3, 4
BOTH = {"num_classes": CLASSES, "prefix_length": PREFIX}


def conditional(**options):
    wrapper = small_nar(**{**BOTH, **options})
    with torch.no_grad():
        if wrapper.class_emb is not None:
            wrapper.class_emb.weight.mul_(50)  # like the tokens of `small_net`
        for block in wrapper.net.attn_layers.blocks:
            block.attention.to_out.weight.mul_(10)  # so that the answers depend on the prefix
    return wrapper


def classes_of(rows):
    return torch.arange(rows) % CLASSES


def watched(wrapper):
    """Tokens and summed embeddings of every call of the net."""
    seen = []
    wrapper.net.register_forward_pre_hook(
        lambda _, arguments, options: seen.append((arguments[0].clone(), options.get("sum_embeds"))), with_kwargs=True
    )
    return seen


def answers(logits):
    """Logits as if there were no mask token."""
    return torch.cat((logits[..., :MASK_ID], logits[..., MASK_ID + 1 :]), dim=-1)


def class_embeds(wrapper, classes):
    return wrapper.class_emb.weight[classes][:, None]


@pytest.mark.parametrize("masking", ["exact", "bernoulli"])
@pytest.mark.parametrize("options", [{"num_classes": None}, {"prefix_length": 0}, {}], ids=["prefix", "class", "both"])
def test_the_loss_is_that_of_the_tokens_behind_the_prefix_given_the_class(options, masking):
    wrapper = conditional(use_simple_mdlm_loss_weight=False, masking=masking, **options).train()
    tokens, lengths = random_tokens(40, N), torch.arange(40) % (N + 1)
    classes = classes_of(40) if wrapper.class_emb is not None else None
    batch, seen = batch_of(tokens, lengths, classes=classes), watched(wrapper)
    terms = wrapper.loss_terms(batch, seed=1)
    masked, present = seen[0][0] == MASK_ID, torch.arange(N) < lengths[:, None]
    embeds = None if classes is None else class_embeds(wrapper, classes)
    logits = wrapper.net(seen[0][0], mask=present, sum_embeds=embeds)
    losses = F.cross_entropy(answers(logits).transpose(1, 2), tokens, reduction="none")
    assert terms.total().item() == pytest.approx(losses[masked].mean().item(), rel=1e-5)
    assert terms.counts.tolist() == wrapper.counts(batch, seed=1).tolist() == [masked.sum()]
    assert not masked[:, : wrapper.prefix_length].any()
    assert torch.equal(masked.any(dim=1), lengths > wrapper.prefix_length)
    weighted = conditional(masking=masking, **options)
    assert weighted.counts(batch).tolist() == weighted.loss_terms(batch).counts.tolist()
    assert weighted.counts(batch).item() == (lengths - weighted.prefix_length).clamp(min=0).sum()


def test_only_the_classes_of_the_batch_learn():
    wrapper = conditional()
    wrapper.loss_terms(batch_of(random_tokens(4, N), classes=torch.tensor([0, 2, 2, 0]))).total().backward()
    assert wrapper.class_emb.weight.grad.any(dim=1).tolist() == [True, False, True, False]


def test_given_places_and_the_prefix_add_up():
    wrapper, tokens = conditional(num_classes=None), random_tokens(60, N)
    frozen = torch.arange(N).expand(60, N) % 3 == 0
    seen = watched(wrapper)
    wrapper(tokens, frozen=frozen)
    masked = (seen[0][0] == MASK_ID).any(dim=0)
    assert masked.tolist() == [place >= PREFIX and place % 3 != 0 for place in range(N)]


@pytest.mark.parametrize("probability", [0.2, 0.7])
def test_class_and_prefix_are_dropped_together_in_training_alone(probability):
    rows = 600
    wrapper, tokens, classes = conditional(condition_drop_prob=probability), random_tokens(rows, N), classes_of(rows)
    batch, seen = batch_of(tokens, classes=classes), watched(wrapper)
    terms = wrapper.train().loss_terms(batch, seed=3)
    visible, embeds = seen[0]
    dropped = (visible[:, :PREFIX] == MASK_ID).all(dim=1)
    assert dropped.float().mean().item() == pytest.approx(probability, abs=4 * (0.25 / rows) ** 0.5)
    assert torch.equal(visible[~dropped, :PREFIX], tokens[~dropped, :PREFIX])
    assert torch.equal(embeds, class_embeds(wrapper, classes.masked_fill(dropped, CLASSES)))
    assert torch.equal(terms.counts, wrapper.counts(batch, seed=3))
    assert terms.counts.item() == rows * (N - PREFIX)
    parts = [rows_of(batch, slice(start, start + 50)) for start in range(0, 100, 50)]
    for part in parts:
        wrapper.loss_terms(part, seed=3)
    assert torch.equal(torch.cat([tokens for tokens, _ in seen[1:]]), visible[:100])
    wrapper.eval().loss_terms(batch, seed=3)
    assert torch.equal(seen[-1][0][:, :PREFIX], tokens[:, :PREFIX])
    assert torch.equal(seen[-1][1], class_embeds(wrapper, classes))


@pytest.mark.parametrize("options", [{}, {"self_cond": True}], ids=["class", "class_and_self_conditioning"])
def test_embeddings_of_the_caller_are_added_to_those_of_the_conditions(options):
    wrapper, tokens, extra = conditional(**options).eval(), random_tokens(3, N), torch.randn(3, N, 16)
    expected = class_embeds(wrapper, classes_of(3)) + extra
    if options:
        expected = expected + wrapper.to_self_cond(wrapper.null_embed)
    logits, _ = wrapper.predict(tokens, classes=classes_of(3), sum_embeds=extra)
    torch.testing.assert_close(logits, wrapper.net(tokens, sum_embeds=expected))


def test_a_prefix_of_embeddings_is_seen_but_not_predicted():
    wrapper, tokens, lengths = small_nar().eval(), random_tokens(6, N), torch.tensor([12, 3, 9, 1, 12, 5])
    embeds, seen = torch.randn(6, 2, 16), watched(wrapper)
    losses = wrapper(tokens, lens=lengths, prepend_embeds=embeds)
    masked = seen[0][0] == MASK_ID
    mask = torch.arange(N + 2) < lengths[:, None] + 2
    logits = wrapper.net(seen[0][0], mask=mask, prepend_embeds=embeds)[:, 2:]
    nats = F.cross_entropy(answers(logits).transpose(1, 2), tokens, reduction="none")
    weights = lengths / masked.sum(dim=1)  # the linear schedule
    assert losses.loss.item() == pytest.approx(((nats * masked).sum(dim=1) * weights).sum().item() / 42, rel=1e-5)


def prompts(rows):
    prompt = torch.full((rows, N), MASK_ID)
    prompt[:, :PREFIX] = random_tokens(rows, PREFIX, seed=5)
    return prompt


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_classes": None}, {"prefix_length": 0}, {}], ids=["prefix", "class", "both"])
def test_guidance_goes_from_the_unconditional_logits_through_the_conditional_ones(options):
    wrapper, prompt, classes = conditional(**options), prompts(6), classes_of(6)
    bare, conditions, none = prompt.clone(), {}, {}
    bare[:, : wrapper.prefix_length] = MASK_ID
    if wrapper.class_emb is not None:
        conditions = {"sum_embeds": class_embeds(wrapper, classes)}
        none = {"sum_embeds": class_embeds(wrapper, torch.full((6,), CLASSES))}
    with_condition, without = answers(wrapper.net(prompt, **conditions)), answers(wrapper.net(bare, **none))
    settings = {"classes": classes if conditions else None, "steps": 1, "start_temperature": 0.0}
    generated = {}
    for scale in (0.0, 0.5, 1.0, 3.0):
        likeliest = (scale * with_condition + (1 - scale) * without).argmax(dim=-1)
        generated[scale] = wrapper.generate(prompts=prompt, guidance_scale=scale, **settings)
        assert torch.equal(generated[scale][:, PREFIX:], likeliest[:, PREFIX:])
        assert torch.equal(generated[scale][:, :PREFIX], prompt[:, :PREFIX])
    assert not torch.equal(generated[0.0], generated[1.0])
    assert not torch.equal(generated[3.0], generated[1.0])


@pytest.mark.parametrize("options", [{}, {"self_cond": True}, {"self_token_critic": True}])
def test_a_guided_request_gives_the_same_alone_and_in_a_batch_and_takes_no_more_calls(options):
    wrapper, prompt, classes = conditional(steps=4, **options), prompts(5), classes_of(5)
    seen = watched(wrapper)

    def generate(rows, scale=2.0):
        noise = Noise.of_requests(1, torch.arange(5)[rows])
        settings = {"noise": noise, "guidance_scale": scale, "return_network_calls": True}
        return wrapper.generate(prompts=prompt[rows], classes=classes[rows], **settings)

    together = generate(slice(None))
    assert sum(len(tokens) == 10 for tokens, _ in seen) == 4  # both halves in one
    assert together.network_calls.tolist() == generate(slice(None), 1.0).network_calls.tolist() == [4] * 5
    for row in range(5):
        assert torch.equal(generate(slice(row, row + 1)).tokens[0], together.tokens[row])


@torch.no_grad()
def test_the_net_as_its_own_critic_knows_the_class():
    wrapper, tokens, classes = conditional(self_token_critic=True).eval(), random_tokens(6, N), classes_of(6)
    seen = watched(wrapper)
    terms = wrapper.loss_terms(batch_of(tokens, classes=classes), seed=1)
    generated, embeds = seen[1]
    assert torch.equal(embeds, class_embeds(wrapper, classes))
    judged = wrapper.token_critic.to_logits(wrapper.net(generated, sum_embeds=embeds, return_embeddings=True))[..., 0]
    expected = F.binary_cross_entropy_with_logits(judged, (generated != tokens).float(), reduction="sum")
    assert terms.sums[1].item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        wrapper.critic_logits(tokens, classes)[0], wrapper.critic_logits(tokens, torch.zeros_like(classes))[0]
    )
    assert not torch.allclose(
        wrapper.critic_logits(tokens, classes)[1], wrapper.critic_logits(tokens, torch.zeros_like(classes))[1]
    )


def block_diffusion(**options):
    options = {**BOTH, "no_replace_prob": 0.0, "random_token_prob": 0.0, **options}
    return BlockDiffusionWrapper(small_net(Encoder), mask_id=MASK_ID, block_size=3, **options)


def test_blocks_lose_the_whole_prefix_and_nothing_else():
    tokens = random_tokens(100, N)
    wrapper = block_diffusion(condition_drop_prob=0.5).train()
    seen = watched(wrapper)
    wrapper.loss_terms(batch_of(tokens, classes=classes_of(100)), seed=1)
    masked, true = seen[0][0].split(N, dim=1)
    dropped = (masked[:, :PREFIX] == MASK_ID).all(dim=1)
    assert 30 < dropped.sum() < 70
    assert torch.equal(true, tokens.masked_fill(dropped[:, None] & (torch.arange(N) < PREFIX), MASK_ID))


def test_guided_blocks_lose_the_whole_prefix_and_nothing_else():
    wrapper, prompt = block_diffusion(steps=4), random_tokens(1, N)
    prompt[:, N - 3 :] = MASK_ID
    seen = watched(wrapper)
    generated = wrapper.generate(prompts=prompt, classes=torch.tensor([1]), guidance_scale=2.0)
    assert torch.equal(generated[:, : N - 3], prompt[:, : N - 3])
    copies = len(seen[0][0]) // 2  # of so few tokens, so that rounding is that of many
    conditional, unconditional = seen[0][0][0], seen[0][0][copies]
    assert torch.equal(conditional, prompt[0, : N - 3])
    assert torch.equal(unconditional, prompt[0, : N - 3].masked_fill(torch.arange(N - 3) < PREFIX, MASK_ID))


def test_the_bound_can_be_evaluated_in_inference_mode():
    wrapper, batch = conditional(masking="bernoulli").eval(), batch_of(random_tokens(4, N), classes=classes_of(4))
    with torch.inference_mode():
        inside = wrapper.loss_terms(batch, seed=1).sums
    assert torch.equal(inside, wrapper.loss_terms(batch, seed=1).sums)


def tell(wrapper, classes, how):
    classes = None if classes is None else torch.tensor(classes)
    if how == "generate":
        return wrapper.generate(2, classes=classes)
    tokens = random_tokens(2, N)
    return (
        wrapper(tokens, classes=classes) if how == "tensor" else wrapper.loss_terms(batch_of(tokens, classes=classes))
    )


@pytest.mark.parametrize("how", ["tensor", "batch", "generate"])
@pytest.mark.parametrize(
    ("num_classes", "classes", "named"),
    [
        (CLASSES, None, ["classes", 3]),
        (None, [0, 1], ["classes", "num_classes"]),
        (CLASSES, [0, 3], ["class", "0..2"]),
        (CLASSES, [-1, 0], ["class", "0..2"]),
        (CLASSES, [0], ["(1,)", 2]),
    ],
)
def test_classes_that_do_not_fit_are_refused(num_classes, classes, named, how):
    with refused(ValueError, *named):
        tell(small_nar(num_classes=num_classes), classes, how)
