import pytest
import torch
import torch.nn.functional as F

from nar_scale.errors import ConfigError
from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import NonAutoregressiveWrapper
from tests.errors import refused
from tests.model.helpers import small_net

from .helpers import batch_of, random_tokens, rows_of, small_nar

MASK_ID, N = 10, 12


def watched(wrapper, module=None):
    """Token ids of every call of the net."""
    seen = []
    (module or wrapper.net).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    return seen


def has_gradient(module):
    return any(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_the_loss_equals_one_from_all_logits():
    wrapper, tokens = small_nar(schedule="cosine").eval(), random_tokens(40, N)
    seen = watched(wrapper)
    terms = wrapper.loss_terms(batch_of(tokens), seed=1)
    masked = seen[0] == MASK_ID
    logits = wrapper.net(seen[0]).detach()
    answers = torch.cat((logits[..., :MASK_ID], logits[..., MASK_ID + 1 :]), dim=-1)  # as if there were no mask token
    losses = F.cross_entropy(answers.transpose(1, 2), tokens, reduction="none")
    k = masked.sum(dim=1).double()
    probability = (2 / torch.pi) * (torch.arccos((k - 1) / N) - torch.arccos(k / N))
    expected = ((losses * masked).sum(dim=1) / (k * probability)).sum()
    assert terms.sums[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.total().item() == pytest.approx(expected.item() / tokens.numel(), rel=1e-5)
    assert not terms.sums.isnan().any()


def test_the_mask_token_is_never_an_answer():
    wrapper, batch = small_nar(), batch_of(random_tokens(8, N))
    before = wrapper.loss_terms(batch, seed=1).total()
    before.backward()
    gradient = wrapper.net.to_logits.weight.grad
    assert (gradient[MASK_ID] == 0).all()
    assert (gradient[:MASK_ID].abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        wrapper.net.to_logits.weight[MASK_ID] += 100.0
    assert torch.equal(wrapper.loss_terms(batch, seed=1).total(), before)


def test_cross_entropies_are_reported_by_masked_fraction():
    wrapper, batch = small_nar(use_simple_mdlm_loss_weight=False), batch_of(random_tokens(50, N))
    seen = watched(wrapper)
    terms = wrapper.loss_terms(batch, seed=1)
    fractions = (seen[0] == MASK_ID).sum(dim=1) / N
    by_fraction = [terms.metrics[f"masked_{low:.1f}_to_{low + 0.2:.1f}"] for low in (0, 0.2, 0.4, 0.6, 0.8)]
    assert sum(metric[0] for metric in by_fraction).item() == pytest.approx(terms.sums[0].item(), rel=1e-5)
    for low, metric in zip((0, 0.2, 0.4, 0.6, 0.8), by_fraction):
        rows = (fractions > low + 1e-6) & (fractions <= low + 0.2 + 1e-6)
        assert metric[1] == (seen[0][rows] == MASK_ID).sum()


def test_bert_corruption_is_for_training_alone():
    wrapper, plain = small_nar(no_replace_prob=0.5, random_token_prob=0.5), small_nar()
    batch = batch_of(random_tokens(100, N))
    seen, uncorrupted = watched(wrapper), watched(plain)
    wrapper.train().loss_terms(batch, seed=1)
    wrapper.eval().loss_terms(batch, seed=1)
    plain.loss_terms(batch, seed=1)
    assert torch.equal(seen[1], uncorrupted[0])
    assert (seen[0] == MASK_ID).sum() < 0.9 * (seen[1] == MASK_ID).sum()
    assert ((seen[0] != batch.tokens) & (seen[0] != MASK_ID)).any()


def test_a_tensor_gives_losses_that_torchs_seed_repeats():
    wrapper, tokens, losses = small_nar(), random_tokens(8, N), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(wrapper(tokens))
    assert losses[0].loss == losses[1].loss != losses[2].loss
    assert losses[0].loss == losses[0].generator_loss
    assert losses[0].critic_loss is None


def test_given_and_padded_tokens_are_seen_but_never_masked():
    wrapper, tokens = small_nar(), random_tokens(60, N)
    frozen, lengths = torch.zeros(60, N, dtype=torch.bool), torch.arange(60) % (N + 1)
    frozen[:, 2::3] = True
    seen = watched(wrapper)
    losses = wrapper(tokens, frozen=frozen, lens=lengths)
    masked = seen[0] == MASK_ID
    assert not (masked & (frozen | (torch.arange(N) >= lengths[:, None]))).any()
    assert masked.any(dim=1)[lengths > 0].all()
    assert losses.loss.isfinite()


def test_self_conditioning_trains_on_the_embeddings_of_a_first_pass():
    wrapper = small_nar(self_cond=True, self_cond_train_prob=0.75).train()
    conditions = []
    wrapper.to_self_cond.register_forward_pre_hook(lambda _, arguments: conditions.append(arguments[0].detach()))
    seen = watched(wrapper)
    wrapper.loss_terms(batch_of(random_tokens(400, N)), seed=1).total().backward()
    first, second = conditions
    null = wrapper.null_embed.detach()
    conditioned = (second != null).flatten(1).any(dim=1)
    assert torch.equal(first, null.expand(400, N, -1))
    assert torch.equal(*seen)
    assert conditioned.float().mean().item() == pytest.approx(0.75, abs=0.08)
    with torch.no_grad():
        previous = wrapper.net(
            seen[0], sum_embeds=wrapper.to_self_cond(null.expand(400, N, -1)), return_embeddings=True
        )
    torch.testing.assert_close(second[conditioned], previous[conditioned])
    assert wrapper.to_self_cond.weight.grad.any()
    assert wrapper.null_embed.grad.any()


def test_the_critic_learns_which_tokens_the_generator_made_up():
    critic = small_net(Encoder, logits_dim=1)
    wrapper, tokens = small_nar(token_critic=critic, critic_loss_weight=0.3), random_tokens(30, N)
    seen, judged = watched(wrapper), watched(wrapper, critic)
    lengths = torch.arange(30) % (N + 1)
    present = torch.arange(N) < lengths[:, None]
    losses = wrapper(tokens, lens=lengths)
    wrong = judged[0] != tokens
    expected = F.binary_cross_entropy_with_logits(
        critic(judged[0], mask=present)[..., 0][present], wrong[present].float()
    )
    assert losses.critic_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.loss.item() == pytest.approx((losses.generator_loss + 0.3 * losses.critic_loss).item(), rel=1e-6)
    assert not (judged[0] == MASK_ID).any()
    assert wrong.any()
    assert not wrong[seen[0] != MASK_ID].any()


def test_a_cold_generator_shows_the_critic_its_likeliest_tokens():
    critic = small_net(Encoder, logits_dim=1)
    wrapper, tokens = small_nar(token_critic=critic), random_tokens(30, N)
    seen, judged = watched(wrapper), watched(wrapper, critic)
    wrapper(tokens, generator_sample_temperature=0.0)
    masked = seen[0] == MASK_ID
    likeliest = wrapper.net(seen[0])[..., :MASK_ID].argmax(dim=-1)
    assert (judged[0][masked] == likeliest[masked]).float().mean() > 0.98


@pytest.mark.parametrize("own", [True, False], ids=["self_critic", "external_critic"])
def test_gradients_reach_what_is_to_learn(own):
    def trained(**only):
        critic = {"self_token_critic": True} if own else {"token_critic": small_net(Encoder, logits_dim=1)}
        wrapper = small_nar(**critic)
        losses = wrapper(random_tokens(8, N), **only)
        losses.loss.backward()
        head = wrapper.token_critic.to_logits
        return losses, has_gradient(wrapper.net), has_gradient(wrapper.net.to_logits), has_gradient(head)

    losses, net, answers, head = trained()
    assert (net, answers, head) == (True, True, True)
    losses, net, answers, head = trained(only_train_generator=True)
    assert (net, answers, head) == (True, True, False)
    assert losses.critic_loss is None
    assert losses.loss == losses.generator_loss
    losses, net, answers, head = trained(only_train_critic=True)
    assert (net, answers, head) == (own, False, True)
    assert losses.generator_loss is None
    assert losses.loss == losses.critic_loss


@pytest.mark.parametrize("options", [{}, {"self_cond": True, "self_token_critic": True}])
def test_it_learns(options):
    """The bound of constant sequences falls far below that of a uniform guess, log 10."""
    wrapper = small_nar(**options).train()
    optimizer = torch.optim.Adam(wrapper.parameters(), lr=1e-2)
    batch = batch_of(torch.arange(10).repeat(2)[:, None].expand(-1, N).contiguous())
    for step in range(40):
        optimizer.zero_grad()
        wrapper.loss_terms(rows_of(batch, slice(None)), seed=step).total().backward()
        optimizer.step()
    nats = wrapper.eval().loss_terms(batch, seed=1000)
    assert (nats.sums[0] / nats.counts[0]).item() < 0.5 * torch.tensor(10.0).log()


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: small_nar(mask_id=11), ConfigError, ["mask_id 11", "11 tokens"]),
        (lambda: small_nar(mask_id=-1), ConfigError, ["mask_id -1"]),
        (lambda: small_nar(schedule="sigmoid"), ConfigError, ["schedule", "sigmoid"]),
        (lambda: NonAutoregressiveWrapper(small_net(Decoder), mask_id=10), ConfigError, ["Encoder"]),
        (
            lambda: small_nar(token_critic=small_net(Encoder, logits_dim=1), self_token_critic=True),
            ConfigError,
            ["token_critic", "self_token_critic"],
        ),
        (lambda: small_nar()(random_tokens(2, 11)), ValueError, ["11 tokens", "max_seq_len", 12]),
        (
            lambda: small_nar()(torch.full((2, N), MASK_ID)),
            (ValueError, RuntimeError),
            ["mask id 10"],
        ),
        (
            lambda: small_nar()(random_tokens(2, N), only_train_critic=True),
            ValueError,
            ["only_train_critic", "token_critic"],
        ),
        (
            lambda: small_nar(self_token_critic=True)(
                random_tokens(2, N), only_train_critic=True, only_train_generator=True
            ),
            ValueError,
            ["only_train_generator", "only_train_critic"],
        ),
        (lambda: small_nar(masking="binomial")(random_tokens(2, N)), ConfigError, ["masking", "binomial"]),
        (lambda: small_nar(prefix_length=-1), ConfigError, ["prefix_length", "max_seq_len", -1]),
        (lambda: small_nar(prefix_length=N), ConfigError, ["prefix_length", 12]),
        (lambda: small_nar(condition_drop_prob=0.1), ConfigError, ["condition_drop_prob"]),
        (lambda: small_nar().generate(1, guidance_scale=2.0), ValueError, ["guidance_scale"]),
        (
            lambda: small_nar().generate(prompts=torch.full((2, N + 1), MASK_ID)),
            ValueError,
            ["13 tokens", "max_seq_len", 12],
        ),
    ],
)
def test_what_cannot_work_is_refused(make, error, named):
    with refused(error, *named):
        make()
