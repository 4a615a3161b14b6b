import pytest
import torch

from nar_scale.errors import ConfigError
from nar_scale.model import Decoder, Encoder, KeyValueCache, TransformerWrapper

from .helpers import small_net

N = 9
LAYERS = {
    "plain": {},
    "learned": {"rotary": False},
    "grouped": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_bias": True},
    "layernorm": {"norm": "layernorm", "feedforward": "gelu"},
    "geglu": {"feedforward": "geglu", "tie_embedding": True},
}
every_kind_of_layer = pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)


def tokens(batch=2, n=N, seed=0):
    return torch.randint(11, (batch, n), generator=torch.Generator().manual_seed(seed))


def changed(x, place):
    x = x.clone()
    x[:, place] = (x[:, place] + 1) % 11
    return x


def moved(net, x, place, **arguments):
    """Places whose logits a change at `place` moves."""
    difference = net(changed(x, place), **arguments) - net(x, **arguments)
    return (difference.abs().amax(dim=(0, 2)) > 1e-6).nonzero().flatten().tolist()


@every_kind_of_layer
def test_a_decoder_sees_the_past_alone_and_an_encoder_everything(options):
    assert moved(small_net(Decoder, **options), tokens(), 4) == [4, 5, 6, 7, 8]
    assert moved(small_net(Encoder, **options), tokens(), 4) == list(range(N))
    assert small_net(Decoder).causal
    assert not small_net(Encoder).causal


@torch.no_grad()
@pytest.mark.parametrize("kind", [Encoder, Decoder])
@every_kind_of_layer
def test_a_pass_is_finished_for_some_tokens(kind, options):
    net, x = small_net(kind, **options), tokens(4)
    unfinished = net(x, return_embeddings=True, unfinished=True)
    whole = net(x, return_embeddings=True)
    assert torch.equal(net.finish(unfinished), whole)
    rows = torch.arange(0, 4 * N, 2)
    assert torch.equal(net.finish(unfinished.flatten(0, 1)[rows]), whole.flatten(0, 1)[rows])
    assert not torch.equal(unfinished, whole)


@every_kind_of_layer
@pytest.mark.parametrize("chunks", [[1] * N, [4, 1, 1, 3], [3, 6]])
def test_the_cache_changes_nothing(options, chunks):
    net, x = small_net(Decoder, **options), tokens()
    cache = KeyValueCache(capacity=12)
    pieces = [net(piece, cache=cache) for piece in x.split(chunks, dim=1)]
    assert cache.longest == N
    assert cache.lengths.tolist() == [N, N]
    torch.testing.assert_close(torch.cat(pieces, dim=1), net(x), rtol=1e-4, atol=1e-5)


def test_the_cache_follows_its_rows():
    net, x, rows = small_net(Decoder), tokens(3), torch.tensor([2, 0, 0, 1])
    cache = KeyValueCache(capacity=12)
    net(x[:, :5], cache=cache)
    cache.select(rows)
    torch.testing.assert_close(net(x[rows, 5:], cache=cache), net(x)[rows, 5:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@every_kind_of_layer
def test_padding_changes_nothing(kind, options):
    net, x, lengths = small_net(kind, **options), tokens(3), torch.tensor([9, 4, 1])
    mask = torch.arange(N) < lengths[:, None]
    padded = net(x, mask=mask)
    assert padded.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(padded[row, :length], net(x[row : row + 1, :length])[0], rtol=1e-4, atol=1e-5)
    other = net(torch.where(mask, x, (x + 3) % 11), mask=mask)
    assert torch.equal(other[mask], padded[mask])


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_a_sequence_of_padding_alone_is_finite_with_finite_gradients(kind):
    net = small_net(kind)
    logits = net(tokens(), mask=torch.tensor([[True] * N, [False] * N]))
    logits[0].sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("options", [{}, {"kv_heads": 1}])
def test_rotary_positions_matter_relatively(options):
    net, x = small_net(Encoder, **options), tokens()
    torch.testing.assert_close(net(x, positions=torch.arange(N) + 40), net(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x, positions=torch.arange(N).expand(2, N)), net(x))
    assert not torch.allclose(net(x, positions=torch.arange(N) * 2), net(x), atol=1e-3)


def test_learned_positions_end_at_max_seq_len():
    net = small_net(Encoder, rotary=False)
    assert net(tokens(n=12)).shape == (2, 12, 11)
    with pytest.raises(ValueError, match="13 tokens exceed max_seq_len 12"):
        net(tokens(n=13))
    cache, decoder = KeyValueCache(20), small_net(Decoder, rotary=False)
    decoder(tokens(n=12), cache=cache)
    with pytest.raises(ValueError, match="13 tokens exceed"):
        decoder(tokens(n=1), cache=cache)


def test_prepended_embeddings_are_a_prefix():
    net, x = small_net(Decoder), tokens()
    prefix = net.token_emb(x[:, :3])
    torch.testing.assert_close(net(x[:, 3:], prepend_embeds=prefix), net(x))


def test_summed_embeddings_are_added():
    net, x = small_net(Encoder), tokens()
    extra = net.token_emb(changed(x, 2)) - net.token_emb(x)
    torch.testing.assert_close(net(x, sum_embeds=extra), net(changed(x, 2)), rtol=1e-4, atol=1e-5)


def test_tied_embeddings_are_one_parameter():
    tied, untied = small_net(Encoder, tie_embedding=True), small_net(Encoder)
    assert tied.to_logits.weight is tied.token_emb.weight
    assert untied.to_logits.weight is not untied.token_emb.weight
    names = [name for name, _ in tied.named_parameters()]
    assert "token_emb.weight" in names
    assert "to_logits.weight" not in names


@pytest.mark.parametrize("kind", [Encoder, Decoder])
@pytest.mark.parametrize("how", ["full", "selective"])
def test_activation_checkpointing_changes_no_gradient(kind, how):
    gradients, recomputed = [], 0
    for checkpointing in ("none", how):
        net = small_net(kind, activation_checkpointing=checkpointing, dropout=0.3).train()
        calls = []
        net.attn_layers.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))  # noqa: B023
        torch.manual_seed(1)
        net(tokens(), mask=torch.arange(N) < torch.tensor([[9], [5]])).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
        recomputed = len(calls)
    assert recomputed == 2
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed)


def test_the_initial_residual_stream_does_not_grow_with_depth():
    def growth(depth):
        torch.manual_seed(0)
        layers = Encoder(dim=64, depth=depth, heads=4)
        stream = []
        layers.final_norm.register_forward_pre_hook(lambda _, arguments: stream.append(arguments[0]))
        x = torch.randn(4, 32, 64)
        layers(x, torch.arange(32))
        return (stream[0] - x).var().item()

    shallow, deep = growth(2), growth(24)
    assert shallow > 1e-3
    assert 0.6 < deep / shallow < 1.6


def test_outputs_on_request():
    net, x = small_net(Decoder, add_continuous_pred_head=True), tokens()
    logits, embeddings = net(x, return_logits_and_embeddings=True)
    output = net(x, return_output=True, with_z_loss=True)
    torch.testing.assert_close(net.to_logits(embeddings), logits)
    torch.testing.assert_close(net(x, return_embeddings=True), embeddings)
    torch.testing.assert_close(output.embeddings, embeddings)
    assert output.attention_z_loss.shape == (2, N)
    assert net(x, return_output=True).attention_z_loss is None
    assert small_net(Encoder, logits_dim=1)(x).shape == (2, N, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "heads": 4}, "dim 10 is not divisible by heads 4; give dim_head"),
        ({"dim": 16, "heads": 4, "kv_heads": 3}, "heads 4 is not divisible by kv_heads 3"),
        ({"dim": 12, "heads": 4}, "even dim_head, not 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Encoder(depth=1, **options)


def test_tying_needs_the_same_size():
    with pytest.raises(ConfigError, match="logits_dim 1 to be num_tokens 5"):
        TransformerWrapper(num_tokens=5, max_seq_len=4, attn_layers=Encoder(8, 1, 2), tie_embedding=True, logits_dim=1)
