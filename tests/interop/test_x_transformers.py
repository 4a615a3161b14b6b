import json

import pytest
import torch
import x_transformers
from safetensors.torch import load_file

from nar_scale.checkpoint import ModelInfo, run_probe
from nar_scale.checkpoint.consolidated import write_consolidated
from nar_scale.commands.export import main as launch
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import CheckpointError, ConfigError
from nar_scale.interop import from_x_transformers, to_x_transformers
from nar_scale.interop.x_transformers.options import WrapperOptions
from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import AutoregressiveWrapper, build_wrapper
from tests.config.helpers import config_with
from tests.errors import refused
from tests.model.helpers import small_net

VOCABULARY, LENGTH, WIDTH = 13, 12, 16
TOLERANCE = 1e-5
SIZES = {"dim": WIDTH, "depth": 2, "heads": 4, "attn_dim_head": 8}
MODERN = {"rotary_pos_emb": True, "rotary_emb_dim": 8, "use_rmsnorm": True, "ff_glu": True, "ff_swish": True}
OPTIONS = {
    "default": {},
    "modern": {**MODERN, "ff_no_bias": True},
    "geglu": {"ff_glu": True, "ff_mult": 2.7},
    "no_bias": {"ff_no_bias": True, "use_rmsnorm": True},
    "gammas_as_they_are": {"norm_add_unit_offset": False},
    "grouped": {**MODERN, "attn_kv_heads": 2, "attn_flash": True},
    "one_kv_head": {"attn_one_kv_head": True, "rotary_pos_emb": True},
    "partial_rotary": {**MODERN, "rotary_emb_dim": 4, "attn_kv_heads": 2},
    "stretched_rotary": {**MODERN, "rotary_interpolation_factor": 2.0, "rotary_base_rescale_factor": 3.0},
    "qk_norm": {"attn_qk_norm": True, "attn_qk_norm_scale": 7.0},
    "qk_norm_rotary": {**MODERN, "attn_qk_norm": True, "attn_kv_heads": 2, "attn_flash": True},
    "qk_rmsnorm": {**MODERN, "attn_qk_rmsnorm": True, "attn_kv_heads": 2},
    "tied": {"tie_embedding": True},
    "tied_scaled": {**MODERN, "tie_embedding": True, "tie_embedding_scale": 0.5},
    "one_head": {"heads": 1, "attn_dim_head": WIDTH},
    "continuous": {**MODERN, "add_continuous_pred_head": True, "logits_dim": VOCABULARY},
    "continuous_with_learned_positions": {"add_continuous_pred_head": True},
    "other_outputs": {"logits_dim": 5},
    "dropout": {"attn_dropout": 0.1, "ff_dropout": 0.1},
}
KINDS = {"encoder": Encoder, "decoder": Decoder}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
PREDICTING = [name for name in OPTIONS if name != "other_outputs"]
predicting = pytest.mark.parametrize("options", [OPTIONS[name] for name in PREDICTING], ids=PREDICTING)
both_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def theirs(kind, options):
    """A net of x-transformers in which no parameter is as it was born."""
    torch.manual_seed(0)
    wrapper = {name: value for name, value in options.items() if name in WrapperOptions.__dataclass_fields__}
    layers = {**SIZES, **{name: value for name, value in options.items() if name not in wrapper}, "verbose": False}
    layers_type = getattr(x_transformers, kind.__name__)
    net = x_transformers.TransformerWrapper(
        **{"num_tokens": VOCABULARY, "max_seq_len": LENGTH, **wrapper}, attn_layers=layers_type(**layers)
    )
    scale = 0.3 / WIDTH**0.5 if net.to_logits is None or options.get("tie_embedding") else 1.5 / WIDTH**0.5
    for name, parameter in net.named_parameters():
        if name.endswith("_rmsnorm.gamma"):  # of which all heads must have the same
            parameter.data = 0.3 * torch.randn(parameter.shape[-1]).expand_as(parameter).clone()
        elif parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3, mean=0.0 if options.get("norm_add_unit_offset", True) else 1.0)
        elif "emb.weight" in name:
            torch.nn.init.normal_(parameter, std=1.0)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    if "to_logits.weight" in dict(net.named_parameters()):
        torch.nn.init.normal_(net.to_logits.weight, std=scale)
    return net.eval(), {**SIZES, **options}


def pair(kind, options):
    net, all_options = theirs(kind, options)
    return net, from_x_transformers(net.state_dict(), kind, **{"max_seq_len": LENGTH, **all_options})


def random_ids(batch=3, n=LENGTH):
    return torch.randint(VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(1))


def assert_close(ours, other):
    assert 0.3 < other.std() < 10
    assert (ours - other).abs().max() <= TOLERANCE


def rebuilt(net):
    """Our net in x-transformers, loaded strictly."""
    export = to_x_transformers(net)
    layers_type = getattr(x_transformers, type(net.attn_layers).__name__)
    layers = layers_type(**export.layer_options, verbose=False)
    other = x_transformers.TransformerWrapper(**export.wrapper_options, attn_layers=layers)
    other.load_state_dict(export.state_dict)
    return other.eval(), export


@both_kinds
@every_option
@torch.no_grad()
def test_the_same_weights_give_the_same_logits(kind, options):
    other, net = pair(kind, options)
    ids = random_ids()
    assert_close(net(ids), other(ids))


@every_option
@torch.no_grad()
def test_padding_is_not_seen_by_others(options):
    other, net = pair(Encoder, options)
    ids, mask = random_ids(), torch.arange(LENGTH) < torch.tensor([LENGTH, 7, 1])[:, None]
    assert_close(net(ids, mask=mask)[mask], other(ids, mask=mask)[mask])


@predicting
@torch.no_grad()
def test_the_same_weights_give_the_same_loss(options):
    other, net = pair(Decoder, options)
    wrapper, their_wrapper = AutoregressiveWrapper(net).eval(), x_transformers.AutoregressiveWrapper(other).eval()
    ids, lengths = random_ids(), torch.tensor([LENGTH, 7, 2])
    assert abs(wrapper(ids) - their_wrapper(ids)) <= TOLERANCE
    assert abs(wrapper(ids, lens=lengths) - their_wrapper(ids, lens=lengths)) <= TOLERANCE


@torch.no_grad()
def test_ignored_targets_and_padding_count_alike():
    other, net = pair(Decoder, OPTIONS["grouped"])
    settings = {"ignore_index": -7, "pad_value": 3}
    ids = random_ids().masked_fill(torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(2)) < 0.3, -7)
    loss = AutoregressiveWrapper(net, **settings).eval()(ids)
    assert abs(loss - x_transformers.AutoregressiveWrapper(other, **settings).eval()(ids)) <= TOLERANCE
    assert abs(loss - AutoregressiveWrapper(net).eval()(ids.masked_fill(ids == -7, 3))) > 0.01


@predicting
def test_the_same_weights_generate_the_same(options):
    other, net = pair(Decoder, options)
    prompts = random_ids(n=3)
    continuation = AutoregressiveWrapper(net).generate(prompts, LENGTH - 3, temperature=0.0, return_prompt=False)
    expected = x_transformers.AutoregressiveWrapper(other).generate(prompts, LENGTH - 3, temperature=0.0)
    assert continuation.equal(expected)
    assert len(continuation.unique()) > 1


@both_kinds
@pytest.mark.parametrize("width", [WIDTH, 24])
@pytest.mark.parametrize("options", [{}, {**MODERN, "attn_kv_heads": 2, "attn_qk_rmsnorm": True}])
@torch.no_grad()
def test_a_context_is_attended_alike(kind, width, options):
    options = {**options, "cross_attend": True, **({} if width == WIDTH else {"cross_attn_dim_context": width})}
    other, net = pair(kind, options)
    ids, context = random_ids(), torch.randn(3, 5, width)
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    assert_close(net(ids, context=context), other(ids, context=context))
    assert_close(net(ids, context=context, context_mask=mask), other(ids, context=context, context_mask=mask))
    back, _ = rebuilt(net)
    assert_close(net(ids, context=context), back(ids, context=context))


@torch.no_grad()
def test_a_window_hides_the_same():
    other, net = pair(Decoder, {**MODERN, "attn_max_attend_past": 3})
    assert net.attn_layers.window == 4
    assert_close(net(random_ids()), other(random_ids()))
    assert_close(net(random_ids()), rebuilt(net)[0](random_ids()))


@both_kinds
@every_option
@torch.no_grad()
def test_the_way_there_and_back(kind, options):
    _, net = pair(kind, options)
    if net.attn_layers.blocks[0].attention.query_norm.__class__ is torch.nn.RMSNorm:
        for block in net.attn_layers.blocks:
            block.attention.query_norm.weight.clamp_(0.5, 2)  # in which taking 1 away is exact
            block.attention.key_norm.weight.clamp_(0.5, 2)
    other, export = rebuilt(net)
    assert_close(net(random_ids()), other(random_ids()))
    back = from_x_transformers(export.state_dict, kind, **export.wrapper_options, **export.layer_options)
    ours, again = net.state_dict(), back.state_dict()
    assert ours.keys() == again.keys()
    assert all(ours[name].equal(again[name]) for name in ours)  # sqrt(dim) is a power of 2 and rounds nothing
    assert back(random_ids()).equal(net(random_ids()))
    assert back.attn_layers.blocks[0].dropout.p == net.attn_layers.blocks[0].dropout.p


@pytest.mark.parametrize("theta", [500.0, 1e6])
@torch.no_grad()
def test_any_theta_has_a_rescale_factor(theta):
    net = small_net(Decoder, VOCABULARY, LENGTH, rotary_theta=theta, norm_eps=1e-24, dim_head=6, rotary_dim=4)
    other, _ = rebuilt(net)
    ids = random_ids()
    assert_close(net(ids), other(ids))


@torch.no_grad()
def test_a_wrapped_state_dict():
    other, options = theirs(Decoder, MODERN)
    state = x_transformers.AutoregressiveWrapper(other).state_dict()
    assert all(name.startswith("net.") for name in state)
    assert_close(from_x_transformers(state, Decoder, max_seq_len=LENGTH, **options)(random_ids()), other(random_ids()))


@torch.no_grad()
def test_options_that_say_what_is_implied():
    other, options = theirs(Decoder, MODERN)
    implied = {"pre_norm": True, "pre_norm_has_final_norm": True, "emb_dropout": 0.0, "use_abs_pos_emb": False}
    net = from_x_transformers(other.state_dict(), Decoder, max_seq_len=LENGTH, **options, **implied)
    assert_close(net(random_ids()), other(random_ids()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_may_come_from_a_gpu():
    other, options = theirs(Decoder, {**MODERN, "ff_no_bias": True})
    net = from_x_transformers(other.cuda().state_dict(), Decoder, max_seq_len=LENGTH, **options)
    assert {weight.device.type for weight in to_x_transformers(net.cuda()).state_dict.values()} == {"cpu"}


@torch.no_grad()
def test_half_precision_stays():
    other, options = theirs(Decoder, MODERN)
    net = from_x_transformers(other.bfloat16().state_dict(), Decoder, max_seq_len=LENGTH, **options)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alibi_pos_bias": True}, ["alibi_pos_bias"]),
        ({"attn_num_mem_kv": 2}, ["attn_num_mem_kv"]),
        ({"attn_kv_head": 2}, ["attn_kv_head", "attn_kv_heads"]),
        ({"attn_dropout": (0.0, 0.1)}, ["attn_dropout", "layer"]),
        ({"attn_dropout": 0.1}, ["attn_dropout", "ff_dropout"]),
        ({"ff_sublayer_dropout": 0.1}, ["ff_sublayer_dropout"]),
        ({"ff_swish": True}, ["ff_swish", "ff_glu"]),
        ({"attn_qk_norm": True, "attn_qk_rmsnorm": True}, ["attn_qk_norm", "attn_qk_rmsnorm"]),
        ({"attn_one_kv_head": True, "attn_kv_heads": 1}, ["attn_one_kv_head", "attn_kv_heads"]),
        ({"attn_max_attend_past": 3}, ["attn_max_attend_past"]),
        ({"heads": 1}, ["attn_project_out"]),
        ({"cross_attn_dim_context": 8}, ["cross_attn_dim_context", "cross_attend"]),
        ({"rotary_pos_emb": True, "rotary_emb_dim": 2}, ["rotary_emb_dim"]),
        ({"tie_embedding": True, "logits_dim": 5}, ["logits_dim"]),
        ({"use_abs_pos_emb": False}, ["use_abs_pos_emb", "rotary_pos_emb"]),
        ({"pre_norm": False}, ["pre_norm", True, False]),
    ],
)
def test_an_option_without_counterpart_is_named(options, named):
    state = theirs(Encoder, {})[0].state_dict()
    with refused(ConfigError, *named):
        from_x_transformers(state, Encoder, max_seq_len=LENGTH, **{**SIZES, **options})


def test_a_missing_option_is_named():
    state = theirs(Encoder, {})[0].state_dict()
    with refused(ConfigError, "depth", "missing"):
        from_x_transformers(state, Encoder, max_seq_len=LENGTH, dim=WIDTH)


GATE = "attn_layers.layers.1.1.ff.0.proj.weight"
FREQUENCIES = "attn_layers.rotary_pos_emb.inv_freq"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.update(mem_k=torch.ones(1)), ["mem_k"]),
        (lambda state: state.pop(GATE), [GATE]),
        (lambda state: state.pop("token_emb.emb.weight"), ["token_emb.emb.weight"]),
        (lambda state: state.update({GATE: torch.ones(3, 4)}), [GATE, [3, 4], [128, 16]]),
        (lambda state: state.update({FREQUENCIES: torch.ones(4)}), [FREQUENCIES, "values"]),
        (lambda state: state.update({FREQUENCIES: torch.ones(3)}), [FREQUENCIES, "shape"]),
        (
            lambda state: state["attn_layers.layers.2.1.q_rmsnorm.gamma"][1].add_(1),
            ["attn_layers.layers.2.1.q_rmsnorm.gamma", "head"],
        ),
    ],
)
def test_a_weight_without_counterpart_is_named(change, named):
    other, options = theirs(Decoder, {**MODERN, "attn_qk_rmsnorm": True})
    state = {name: value.clone() for name, value in other.state_dict().items()}
    change(state)
    with refused(CheckpointError, *named):
        from_x_transformers(state, Decoder, max_seq_len=LENGTH, **options)


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (Encoder, {"window": 3, "norm_eps": 1e-24}, ["window", "Encoder"]),
        (Decoder, {"window": 3, "cross_attend": True, "norm_eps": 1e-24}, ["window", "cross_attend"]),
        (Decoder, {"rotary_dim": 2, "norm_eps": 1e-24}, ["rotary_dim 2"]),
        (Encoder, {"qk_bias": True, "norm_eps": 1e-24}, ["qk_bias"]),
        (Decoder, {"rotary_interpolation_factor": 0.5, "norm_eps": 1e-24}, ["rotary_interpolation_factor 0.5"]),
        (Decoder, {}, ["norm_eps 1e-06", 1e-24]),
        (Decoder, {"norm": "layernorm", "norm_eps": 1e-5, "qk_norm": True}, ["norm_eps 1e-05", 1e-24]),
        (Decoder, {"norm": "layernorm", "norm_eps": 1e-3}, ["norm_eps 0.001", 1e-05]),
    ],
)
def test_what_x_transformers_lacks_is_named(kind, options, named):
    with refused(ConfigError, *named):
        to_x_transformers(small_net(kind, **options))


def exported(directory, **settings):
    torch.manual_seed(0)
    config = config_with(**{"training.run_directory": "runs/x", "model.norm": "layernorm", **settings})
    wrapper = build_wrapper(config, 257)
    info = ModelInfo(257, "byte", 30, 240, "fp32", DecodeManifest.of(config, wrapper.mask_id, 256))
    write_consolidated(directory, wrapper, config, info, run_probe(wrapper))
    return wrapper.eval()


@torch.no_grad()
def test_a_consolidated_checkpoint_becomes_a_directory(tmp_path):
    wrapper = exported(tmp_path / "model")
    output = tmp_path / "theirs"
    command = ["--checkpoint", str(tmp_path / "model"), "--format", "x-transformers", "--output", str(output)]
    assert launch(command) == 0
    options = json.loads((output / "options.json").read_text())
    layers = getattr(x_transformers, options["attn_layers"])(**options["layer_options"], verbose=False)
    other = x_transformers.TransformerWrapper(**options["wrapper_options"], attn_layers=layers).eval()
    other.load_state_dict(load_file(output / "model.safetensors"))
    ids = torch.randint(257, (2, 12))
    torch.testing.assert_close(other(ids), wrapper.net(ids), rtol=0, atol=TOLERANCE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "theirs"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"objective.self_token_critic": True}, "outside the net"), ({"model.norm": "rmsnorm"}, "norm_eps")],
)
def test_the_launcher_names_what_cannot_be_exported(tmp_path, capsys, settings, named):
    exported(tmp_path / "model", **settings)
    command = ["--checkpoint", str(tmp_path / "model"), "--format", "x-transformers", "--output", str(tmp_path / "x")]
    assert launch(command) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    if named == "norm_eps":
        assert launch([*command, "--ignore-norm-eps"]) == 0
        assert (tmp_path / "x" / "options.json").is_file()
