"""One import line changes: the modules of x-transformers by their names, and what its own tests do with them."""

import inspect

import pytest
import torch
import x_transformers

from nar_scale.errors import ConfigError
from nar_scale.interop.x_transformers import (
    AutoregressiveWrapper,
    Decoder,
    Encoder,
    NonAutoregressiveWrapper,
    TransformerWrapper,
    from_x_transformers,
    to_x_transformers,
)
from tests.errors import refused

VOCABULARY, LENGTH, WIDTH = 13, 24, 16
SIZES = {"dim": WIDTH, "depth": 2}
OPTIONS = {
    "default": {},
    "modern": {
        **{"rotary_pos_emb": True, "use_rmsnorm": True, "ff_glu": True, "ff_swish": True, "attn_flash": True},
        **{"heads": 4, "attn_dim_head": 8, "attn_kv_heads": 2, "attn_qk_norm": True, "verbose": False},
    },
}


def make(library, kind, options, **wrapper):
    layers = getattr(library, kind)(**SIZES, **options)
    sizes = {"num_tokens": VOCABULARY, "max_seq_len": LENGTH}
    return library.TransformerWrapper(**sizes, attn_layers=layers, **wrapper)


class Ours:
    """The names of x-transformers that are used here."""

    TransformerWrapper, Encoder, Decoder = TransformerWrapper, Encoder, Decoder
    AutoregressiveWrapper = AutoregressiveWrapper


def random_ids(*shape):
    return torch.randint(VOCABULARY - 1, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def attentive():
    """A net with an untrained one's weights, but of which far tokens matter, and the same in x-transformers."""

    def build(kind, options, **wrapper):
        torch.manual_seed(0)
        theirs = make(x_transformers, kind, options, **wrapper).eval()
        for name, parameter in theirs.named_parameters():
            if "emb.weight" in name:
                torch.nn.init.normal_(parameter)
        ours = make(Ours, kind, options, **wrapper).eval()
        arguments = {**SIZES, **options, **wrapper, "max_seq_len": LENGTH}
        ours.load_state_dict(from_x_transformers(theirs.state_dict(), getattr(Ours, kind), **arguments).state_dict())
        return ours, theirs

    return build


@pytest.mark.parametrize("kind", ["Encoder", "Decoder"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_the_same_options_make_the_same_net(attentive, kind, options):
    ours, theirs = attentive(kind, options, tie_embedding=True)
    ids = random_ids(2, LENGTH)
    expected = theirs(ids)
    assert expected.std() > 0.1
    assert torch.allclose(ours(ids), expected, atol=1e-5)
    seen = torch.arange(LENGTH) < torch.tensor([LENGTH, 7])[:, None]
    assert torch.allclose(ours(ids, mask=seen)[seen], theirs(ids, mask=seen)[seen], atol=1e-5)
    assert to_x_transformers(ours).layer_options["dim"] == WIDTH


def test_queries_and_keys_begin_with_the_scale_of_theirs():
    block = make(Ours, "Encoder", OPTIONS["modern"]).attn_layers.blocks[0]
    assert torch.allclose(block.attention.query_norm.weight**2 * 8**0.5, torch.tensor(10.0))


@torch.no_grad()
def test_prepended_embeddings_and_their_mask(attentive):
    ours, theirs = attentive("Decoder", OPTIONS["modern"])
    ids, embeds = random_ids(2, 6), torch.randn(2, 3, WIDTH)
    masks = torch.tensor([[True, False, True], [True, True, False]])
    for arguments in ({}, {"prepend_mask": masks}, {"prepend_mask": masks, "mask": random_ids(2, 6) > 3}):
        if "mask" in arguments:
            arguments["mask"][:, 0] = True
        both = [net(ids, prepend_embeds=embeds, **arguments) for net in (ours, theirs)]
        seen = torch.cat((arguments.get("prepend_mask", masks | True), arguments.get("mask", ids >= 0)), dim=1)
        assert torch.allclose(both[0][seen], both[1][seen], atol=1e-5)
    losses = [
        library.AutoregressiveWrapper(net)(ids, prepend_embeds=embeds, prepend_mask=masks)
        for library, net in ((Ours, ours), (x_transformers, theirs))
    ]
    assert abs(losses[0] - losses[1]) < 1e-5
    assert losses[0] != AutoregressiveWrapper(ours)(ids, prepend_embeds=embeds)


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_generation_after_masked_embeddings(attentive, options, cache_kv):
    ours, theirs = attentive("Decoder", options)
    prompts, embeds = random_ids(2, 1), torch.randn(2, 3, WIDTH)
    masks = torch.tensor([[True, False, True], [False, True, True]])
    arguments = {"seq_len": LENGTH - 4, "temperature": 0.0, "prepend_embeds": embeds, "prepend_mask": masks}
    sample = AutoregressiveWrapper(ours).generate(prompts=prompts, cache_kv=cache_kv, **arguments)
    assert sample.shape == (2, LENGTH - 4)
    assert sample.equal(AutoregressiveWrapper(ours).generate(prompts=prompts, cache_kv=not cache_kv, **arguments))
    if "rotary_pos_emb" in options:  # learned positions count the prefix here
        assert sample.equal(x_transformers.AutoregressiveWrapper(theirs).generate(prompts, cache_kv=False, **arguments))


def test_prompts_in_a_list(attentive):
    ours, theirs = attentive("Decoder", OPTIONS["modern"])
    prompts = [random_ids(10)[:length] for length in (3, 5, 2, 7)]
    both = [
        library.AutoregressiveWrapper(net).generate(prompts, 12, temperature=0.0)
        for library, net in ((Ours, ours), (x_transformers, theirs))
    ]
    assert both[0].shape == (4, 12)
    assert both[0].equal(both[1])
    tensor = torch.stack([prompt[:2] for prompt in prompts])
    assert AutoregressiveWrapper(ours).generate(tensor, 5, restrict_to_max_seq_len=True).shape == (4, 5)


@pytest.mark.parametrize("stochastic", [False, True])
def test_beams_come_first(attentive, stochastic):
    wrapper = AutoregressiveWrapper(attentive("Decoder", {})[0])
    prompts = random_ids(2, 1)
    torch.manual_seed(0)
    best = wrapper.beam_search(prompts, 10, beams=4, stochastic=stochastic)
    assert best.shape == (2, 10)
    torch.manual_seed(0)
    beams, scores = wrapper.beam_search(prompts, 10, beams=4, return_beams_and_scores=True, stochastic=stochastic)
    assert (beams.shape, scores.shape) == ((4, 2, 10), (4, 2))
    assert beams[0].equal(best)
    assert (scores.diff(dim=0) <= 0).all()
    beams, scores = wrapper.beam_search(prompts[0], 3, beams=4, return_beams_and_scores=True)
    assert (beams.shape, scores.shape) == ((4, 3), (4,))


@pytest.mark.parametrize("continuous", [False, True])
def test_autoregressive_training(continuous):
    wrapper = AutoregressiveWrapper(make(Ours, "Decoder", {}, add_continuous_pred_head=continuous))
    loss = wrapper(random_ids(2, LENGTH))
    loss.backward()
    assert 0 < loss.item() < 10


@pytest.mark.parametrize("weighted", [False, True])
def test_simple_mdlm_with_default_heads(weighted):
    net = make(Ours, "Encoder", {"rotary_pos_emb": True})
    assert (net.attn_layers.heads, net.attn_layers.dim_head) == (8, 64)
    wrapper = NonAutoregressiveWrapper(net, mask_id=VOCABULARY - 1, use_simple_mdlm_loss_weight=weighted)
    losses = wrapper(random_ids(1, LENGTH))
    losses.loss.backward()
    assert losses.loss.item() > 0
    assert all(parameter.grad.isfinite().all() for parameter in wrapper.parameters() if parameter.grad is not None)
    assert wrapper.generate(batch_size=2).shape == (2, LENGTH)
    arguments = inspect.signature(x_transformers.NonAutoregressiveWrapper).parameters
    defaults = {name: one.default for name, one in inspect.signature(NonAutoregressiveWrapper).parameters.items()}
    assert {name: one.default for name, one in arguments.items()}.items() <= defaults.items()


@pytest.mark.parametrize(
    ("make_net", "named"),
    [
        (lambda: make(Ours, "Encoder", {"attn_fash": True}), ["attn_fash", "attn_flash"]),
        (
            lambda: make(Ours, "Decoder", {"alibi_pos_bias": True, "macaron": True, "heads": (4, 8)}),
            ["alibi_pos_bias", "macaron", "heads"],
        ),
        (lambda: make(Ours, "Encoder", {"ff_swish": True, "attn_max_attend_past": 3}), ["ff_swish", "Encoder"]),
        (lambda: make(Ours, "Encoder", {}, num_memory_tokens=2, emb_dropout=0.1), ["num_memory_tokens", "emb_dropout"]),
        (lambda: make(Ours, "Encoder", {}, tie_embeding=True), ["tie_embeding", "tie_embedding"]),
        (lambda: make(Ours, "Encoder", {}, use_abs_pos_emb=False), ["use_abs_pos_emb", "rotary_pos_emb"]),
        (lambda: Decoder(), ["dim", "depth"]),
        (
            lambda: AutoregressiveWrapper(make(Ours, "Decoder", {})).generate(
                random_ids(1, 2), 3, return_intermediates=True
            ),
            ["return_intermediates"],
        ),
    ],
)
def test_options_without_counterpart_are_named(make_net, named):
    with refused(ConfigError, *named):
        make_net()
