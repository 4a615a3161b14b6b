"""`transformers` builds and saves the directories, and says what they compute."""

import importlib
import json
import re

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nar_scale.checkpoint import load_consolidated
from nar_scale.config import check_run, load_config
from nar_scale.errors import CheckpointError, ConfigError, DataError, UserError
from nar_scale.interop import export_llama, import_llama
from tests.errors import refused
from tests.interop.test_llama import END, VOCABULARY, built, every_model, loaded, save_tokenizer

launch = importlib.import_module("nar_scale.commands.import_").main
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "bos_token_id": 0,
    "eos_token_id": END,
}
LLAMAS = {
    "plain": {},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 1e-3},
    "tied": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
}


def saved(directory, dtype=torch.float32, shard_size="5GB", **changes):
    """A Llama directory that transformers has written, of a model in which no parameter is as it was born."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **changes})).to(dtype).eval()
    for parameter in model.parameters():
        mean, std = (1.0, 0.3) if parameter.ndim == 1 else (0.0, parameter.shape[1] ** -0.5)
        torch.nn.init.normal_(parameter, mean, std)
    model.save_pretrained(directory, max_shard_size=shard_size)
    return model


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights_of(directory):
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_same_bytes(ours, theirs):
    ours, theirs = weights_of(ours), weights_of(theirs)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert ours[name].view(torch.uint8).equal(value.view(torch.uint8)), name


@pytest.mark.parametrize("changes", LLAMAS.values(), ids=LLAMAS)
@torch.no_grad()
def test_the_checkpoint_computes_the_logits_of_transformers(tmp_path, changes):
    llama = saved(tmp_path / "llama", **changes)
    assert import_llama(tmp_path / "llama", tmp_path / "ours") <= 1e-6
    ids = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(1))
    model, expected = load_consolidated(tmp_path / "ours"), llama(ids).logits
    assert 0.3 < expected.std() < 10
    assert (model.wrapper.net(ids) - expected).abs().max() <= 1e-5
    assert (model.info.vocabulary_size, model.info.decode.end_token, model.tokenizer) == (VOCABULARY, END, None)
    export_llama(model, tmp_path / "again")
    assert_same_bytes(tmp_path / "again", tmp_path / "llama")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_files_of_16_bits_keep_them_and_come_back_the_same(tmp_path, dtype):
    saved(tmp_path / "llama", dtype)
    import_llama(tmp_path / "llama", tmp_path / "ours")
    assert {value.dtype for value in load_file(tmp_path / "ours" / "model.safetensors").values()} == {dtype}
    export_llama(load_consolidated(tmp_path / "ours", dtype=None), tmp_path / "again")
    assert_same_bytes(tmp_path / "again", tmp_path / "llama")
    whole = loaded(tmp_path / "llama").float()
    ids = torch.arange(VOCABULARY)[None]
    ours = load_consolidated(tmp_path / "ours").wrapper.net(ids)
    assert (ours - whole(ids).logits).abs().max() <= 1e-5


@torch.no_grad()
def test_weights_of_several_dtypes_become_float32(tmp_path):
    saved(tmp_path / "llama", torch.bfloat16)
    file = tmp_path / "llama" / "model.safetensors"
    values = load_file(file)
    save_file({**values, "model.norm.weight": values["model.norm.weight"].float() + 1e-6}, file)
    import_llama(tmp_path / "llama", tmp_path / "ours")
    imported = load_consolidated(tmp_path / "ours", dtype=None).wrapper.net.attn_layers.final_norm.weight
    assert imported.equal(values["model.norm.weight"].float() + 1e-6)


@torch.no_grad()
def test_split_weights_are_read_by_their_index(tmp_path):
    llama = saved(tmp_path / "llama", shard_size="6KB")
    assert len(list((tmp_path / "llama").glob("model-*-of-*.safetensors"))) >= 3
    import_llama(tmp_path / "llama", tmp_path / "ours", shard_bytes=5000)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) >= 3
    ids = torch.arange(VOCABULARY)[None]
    assert (load_consolidated(tmp_path / "ours").wrapper.net(ids) - llama(ids).logits).abs().max() <= 1e-5
    export_llama(load_consolidated(tmp_path / "ours"), tmp_path / "again")
    assert_same_bytes(tmp_path / "again", tmp_path / "llama")
    absent = sorted((tmp_path / "llama").glob("model-*.safetensors"))[1]
    absent.unlink()
    with refused(CheckpointError, absent.name):
        import_llama(tmp_path / "llama", tmp_path / "new")


@every_model
def test_it_is_the_inverse_of_the_export(tmp_path, settings):
    model = built(**settings, **{"model.dropout": 0.1})
    export_llama(model, tmp_path / "llama")
    import_llama(tmp_path / "llama", tmp_path / "ours")
    again = load_consolidated(tmp_path / "ours")
    ours, theirs = dict(again.wrapper.named_parameters()), dict(model.wrapper.named_parameters())
    assert list(ours) == list(theirs)
    assert all(ours[name].equal(value) for name, value in theirs.items())
    ids = torch.arange(VOCABULARY)[None]
    assert again.wrapper.net(ids).equal(model.wrapper.net(ids))
    assert again.config.model.dropout == 0.1
    export_llama(again, tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "llama" / file).read_bytes()


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        (None, (1.0, None, None)),
        ({"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9}, (0.5, 3, 0.9)),
        ({"do_sample": True, "temperature": 1, "top_k": 0, "top_p": 1.0}, (1.0, None, None)),
        ({"do_sample": False, "temperature": 0.5}, (0.0, None, None)),
        ({"temperature": 0.5, "top_p": None}, (0.5, None, None)),
        ({"do_sample": True, "temperature": None, "min_p": 0.1}, (1.0, None, None)),
        ([], (1.0, None, None)),
    ],
)
def test_how_samples_are_drawn_comes_along(tmp_path, described, expected):
    saved(tmp_path / "llama")
    file = tmp_path / "llama" / "generation_config.json"
    file.unlink(missing_ok=True)
    if described is not None:
        file.write_text(json.dumps(described))
    import_llama(tmp_path / "llama", tmp_path / "ours")
    decoding = load_consolidated(tmp_path / "ours").info.decode.decoding
    assert (decoding.temperature, decoding.top_k, decoding.top_p) == expected


@pytest.mark.parametrize("content", ["{", '{"top_p": 0.0}', '{"top_k": -1}', '{"temperature": "hot"}'])
def test_a_damaged_description_of_samples_is_named(tmp_path, content):
    saved(tmp_path / "llama")
    (tmp_path / "llama" / "generation_config.json").write_text(content)
    with refused(DataError, "generation_config.json", *re.findall(r'"(\w+)":', content)):
        import_llama(tmp_path / "llama", tmp_path / "ours")


@pytest.mark.parametrize("split", [True, False])
def test_the_tokenizer_comes_along(tmp_path, split):
    saved(tmp_path / "llama")
    save_tokenizer(tmp_path / "llama" / "tokenizer.json")
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps({"split_special_tokens": split}))
    assert launch(["--format", "llama", str(tmp_path / "llama"), "--output", str(tmp_path / "ours")]) == 0
    model = load_consolidated(tmp_path / "ours")
    assert model.tokenizer is not None
    assert model.tokenizer.end_token == model.info.decode.end_token == END
    assert model.tokenizer.decode(model.tokenizer.encode(b"a cab is dear")) == "a cab is dear"
    assert model.info.special_tokens == ("text" if split else "ids")
    export_llama(model, tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again").eos_token_id == END


@pytest.mark.parametrize(("end_token", "expected"), [("b", 1), (7, 7), (None, 5)])
def test_the_end_token_can_be_named(tmp_path, end_token, expected):
    saved(tmp_path / "llama", eos_token_id=[5, 6])
    save_tokenizer(tmp_path / "llama" / "tokenizer.json")
    import_llama(tmp_path / "llama", tmp_path / "ours", end_token=end_token)
    assert load_consolidated(tmp_path / "ours").info.decode.end_token == expected


def test_its_configuration_is_one_to_fine_tune_with(tmp_path):
    saved(tmp_path / "llama", torch.bfloat16)
    import_llama(tmp_path / "llama", tmp_path / "ours")
    config = load_config(tmp_path / "ours" / "config.yaml", ["data.directory=elsewhere"])
    check_run(config)
    assert config.objective.kind == "autoregressive"
    assert (config.training.precision, config.training.run_directory) == ("bf16", "runs/ours")
    assert (config.data.vocabulary_size, config.model.max_seq_len) == (VOCABULARY, 24)


REFUSED = {
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "hidden_act 'gelu'": {"hidden_act": "gelu"},
    "rope_type 'llama3'": {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}},
    "rope_type 'yarn'": {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "partial_rotary_factor 0.5": {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    "model_type 'mistral'": {"model_type": "mistral"},
    "'LlamaForSequenceClassification'": {"architectures": ["LlamaForSequenceClassification"]},
    "quantization_config": {"quantization_config": {"quant_method": "gptq"}},
}


@pytest.mark.parametrize(("named", "changes"), REFUSED.items(), ids=REFUSED)
def test_what_this_library_lacks_is_named(tmp_path, named, changes):
    saved(tmp_path / "llama")
    change_config(tmp_path / "llama", **changes)
    with refused(ConfigError, tmp_path / "llama" / "config.json", named):
        import_llama(tmp_path / "llama", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def without(values, name):
    return {other: value for other, value in values.items() if other != name}


NORM, HEAD = "model.norm.weight", "lm_head.weight"
DAMAGE = {
    "missing": (lambda values: without(values, NORM), NORM),
    "unknown": (lambda values: {**values, "model.extra.weight": torch.ones(1)}, "model.extra.weight"),
    "bias": (lambda values: {**values, "lm_head.bias": torch.ones(VOCABULARY)}, "lm_head.bias"),
    "shape": (lambda values: {**values, NORM: torch.ones(8)}, "[16]"),
    "rows": (lambda values: {**values, HEAD: torch.ones(VOCABULARY + 1, 16)}, f"[{VOCABULARY}, 16]"),
    "integers": (lambda values: {**values, NORM: torch.ones(16, dtype=torch.int64)}, "torch.int64"),
    "eight bits": (lambda values: {**values, NORM: torch.ones(16, dtype=torch.int8)}, "I8"),
}


@pytest.mark.parametrize(("change", "named"), DAMAGE.values(), ids=DAMAGE)
def test_weights_that_are_not_those_of_the_model_are_named(tmp_path, change, named):
    saved(tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    save_file({name: value.clone() for name, value in change(load_file(file)).items()}, file)
    with refused(CheckpointError, tmp_path / "llama", named):
        import_llama(tmp_path / "llama", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_tied_head_that_is_stored_must_be_the_table(tmp_path):
    saved(tmp_path / "llama", tie_word_embeddings=True)
    file = tmp_path / "llama" / "model.safetensors"
    values = load_file(file)
    save_file({**values, HEAD: values["model.embed_tokens.weight"].clone()}, file)
    import_llama(tmp_path / "llama", tmp_path / "ours")
    save_file({**values, HEAD: values["model.embed_tokens.weight"] + 1}, file)
    with refused(CheckpointError, HEAD, "tie_word_embeddings"):
        import_llama(tmp_path / "llama", tmp_path / "new")


def test_frequencies_that_early_files_hold_are_no_weights(tmp_path):
    saved(tmp_path / "llama")
    file = tmp_path / "llama" / "model.safetensors"
    save_file({**load_file(file), "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    import_llama(tmp_path / "llama", tmp_path / "ours")
    export_llama(load_consolidated(tmp_path / "ours"), tmp_path / "again")
    assert len(weights_of(tmp_path / "again")) == len(weights_of(tmp_path / "llama")) - 1


def test_directories_of_something_else_are_named(tmp_path, capsys):
    with refused(CheckpointError, tmp_path / "nowhere" / "config.json"):
        import_llama(tmp_path / "nowhere", tmp_path / "ours")
    saved(tmp_path / "llama")
    (tmp_path / "llama" / "model.safetensors").rename(tmp_path / "llama" / "pytorch_model.bin")
    with refused(CheckpointError, tmp_path / "llama", "model.safetensors"):
        import_llama(tmp_path / "llama", tmp_path / "ours")
    change_config(tmp_path / "llama", vocab_size="many")
    with refused(CheckpointError, tmp_path / "llama" / "config.json", "vocab_size"):
        import_llama(tmp_path / "llama", tmp_path / "ours")
    assert launch(["--format", "llama", str(tmp_path / "llama"), "--output", str(tmp_path / "ours")]) == 2
    assert "vocab_size" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    saved(tmp_path / "llama", vocab_size=VOCABULARY - 1, eos_token_id=3)
    save_tokenizer(tmp_path / "llama" / "tokenizer.json")
    with refused(DataError, tmp_path / "llama" / "tokenizer.json", VOCABULARY, VOCABULARY - 1):
        import_llama(tmp_path / "llama", tmp_path / "ours")


def test_an_end_token_needs_a_tokenizer_that_has_it(tmp_path):
    saved(tmp_path / "llama")
    with refused(UserError, "--end-token", "</s>"):
        import_llama(tmp_path / "llama", tmp_path / "ours", end_token="</s>")
    with refused(UserError, "end token", VOCABULARY):
        import_llama(tmp_path / "llama", tmp_path / "ours", end_token=VOCABULARY)
    save_tokenizer(tmp_path / "llama" / "tokenizer.json")
    with refused(DataError, tmp_path / "llama" / "tokenizer.json", "nothing"):
        import_llama(tmp_path / "llama", tmp_path / "ours", end_token="nothing")
