import json
from dataclasses import replace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from nar_scale.checkpoint import LoadedModel, ModelInfo, load_consolidated, run_probe
from nar_scale.checkpoint.consolidated import write_consolidated
from nar_scale.commands.export import main as launch
from nar_scale.data import load_tokenizer
from nar_scale.data.tokenizers import END_TOKEN_TEXT
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import CheckpointError, ConfigError
from nar_scale.interop import export_llama
from nar_scale.model import Decoder, Encoder
from nar_scale.objectives import AutoregressiveWrapper, NonAutoregressiveWrapper, build_wrapper
from tests.config.helpers import config_with
from tests.errors import refused
from tests.model.helpers import small_net

VOCABULARY, END = 21, 20
AR = {"objective.kind": "autoregressive", "training.run_directory": "runs/x", "model.max_seq_len": 24}
MODELS = {
    "default": {},
    "grouped": {"model.heads": 4, "model.kv_heads": 2, "model.dim_head": 6, "model.rotary_theta": 500.0},
    "tied": {"model.tie_embeddings": True, "model.feedforward_dim": 24, "model.norm_eps": 1e-3},
    "linear_scaling": {"model.rotary_interpolation_factor": 2.0},
    "rescaled_base": {"model.rotary_base_rescale_factor": 4.0, "model.kv_heads": 1},
}
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)


def built(vocabulary_size=VOCABULARY, tokenizer=None, **settings):
    """A loaded model in which no parameter is as it was born."""
    torch.manual_seed(0)
    config = config_with(**{**AR, **settings})
    wrapper = build_wrapper(config, vocabulary_size).eval()
    for parameter in wrapper.parameters():
        mean, std = (1.0, 0.3) if parameter.ndim == 1 else (0.0, parameter.shape[1] ** -0.5)
        torch.nn.init.normal_(parameter, mean, std)
    decode = DecodeManifest.of(config, wrapper.mask_id, END if tokenizer is None else tokenizer.end_token)
    info = ModelInfo(vocabulary_size, tokenizer and tokenizer.name, 30, 240, "fp32", decode)
    return LoadedModel(wrapper, config, info, tokenizer)


def loaded(directory):
    model, report = transformers.LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@every_model
@torch.no_grad()
def test_llama_computes_and_generates_the_same(tmp_path, settings):
    model = built(**settings)
    export_llama(model, tmp_path / "llama")
    llama = loaded(tmp_path / "llama")
    ids = torch.randint(VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(1))
    logits = llama(ids).logits
    assert 0.3 < logits.std() < 10
    assert (model.wrapper.net(ids) - logits).abs().max() <= 1e-5
    expected = llama.generate(ids[:, :4], do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0)
    assert model.wrapper.generate(ids[:, :4], 20, temperature=0.0).equal(expected)
    assert len(expected[:, 4:].unique()) > 2


def test_the_card_is_for_the_library_that_loads_it(tmp_path):
    export_llama(built(), tmp_path / "llama", license="mit")
    card = ModelCard.load(tmp_path / "llama" / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")
    assert "# llama\n" in card.text


def test_the_config_says_what_the_model_is(tmp_path):
    export_llama(built(**MODELS["grouped"], **MODELS["linear_scaling"]), tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 24,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
        "tie_word_embeddings": False,
        "eos_token_id": END,
        "bos_token_id": None,
        "dtype": "float32",
    }
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        ({}, {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.9}, {"temperature": 0.5, "top_k": 3, "top_p": 0.9}),
        ({"temperature": 0.0, "top_k": 3}, {"do_sample": False, "top_k": None}),
    ],
)
def test_the_settings_of_decoding_go_along(tmp_path, decoding, expected):
    model = built()
    settings = model.info.decode.decoding.model_copy(update=decoding)
    info = replace(model.info, decode=model.info.decode.model_copy(update={"decoding": settings}))
    export_llama(replace(model, info=info), tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "generation_config.json").read_text())
    assert {name: config.get(name) for name in expected} == expected
    assert (config["eos_token_id"], config["pad_token_id"]) == (END, END)


@torch.no_grad()
def test_large_weights_are_split(tmp_path):
    model = built()
    export_llama(model, tmp_path / "llama", shard_bytes=5000)
    assert len(list((tmp_path / "llama").glob("model-*-of-*.safetensors"))) > 1
    ids = torch.arange(VOCABULARY)[None]
    torch.testing.assert_close(loaded(tmp_path / "llama")(ids).logits, model.wrapper.net(ids), rtol=0, atol=1e-5)


REFUSED = {
    "norm layernorm": {"norm": "layernorm"},
    "feedforward gelu": {"feedforward": "gelu"},
    "feedforward geglu": {"feedforward": "geglu"},
    "feedforward_bias": {"feedforward_bias": True},
    "qk_norm": {"qk_norm": True},
    "qk_bias": {"qk_bias": True},
    "learned positions": {"rotary": False},
    "rotary_dim": {"rotary_dim": 4},
    "dim 16 that heads 3 do not divide": {"heads": 3, "dim_head": 4},
    "window": {"window": 3},
    "cross_attend": {"cross_attend": True},
    "tie_embedding_scale": {"tie_embedding": True, "tie_embedding_scale": 0.5},
    "logits_dim": {"logits_dim": 5},
    "continuous head": {"add_continuous_pred_head": True},
}


@pytest.mark.parametrize(("named", "options"), REFUSED.items(), ids=REFUSED)
def test_what_llama_lacks_is_named(tmp_path, named, options):
    model = built()
    wrapper = AutoregressiveWrapper(small_net(Decoder, **options))
    with refused(ConfigError, "Llama", named):
        export_llama(LoadedModel(wrapper, model.config, model.info, None), tmp_path / "llama")
    assert not list(tmp_path.iterdir())


def test_non_autoregressive_models_are_refused(tmp_path):
    model = built()
    wrapper = NonAutoregressiveWrapper(small_net(Encoder), mask_id=10)
    with refused(ConfigError, "Llama", "objective.kind autoregressive"):
        export_llama(LoadedModel(wrapper, model.config, model.info, None), tmp_path / "llama")


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "llama").mkdir()
    with refused(CheckpointError, tmp_path / "llama"):
        export_llama(built(), tmp_path / "llama")


def save_tokenizer(path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {**{letter: number for number, letter in enumerate("abcdefghijklmnopqrsĠ")}, "</s>": END}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path))


@torch.no_grad()
def test_the_launcher(tmp_path, capsys):
    model = built()
    info = ModelInfo(**{**vars(model.info), "tokenizer": "tokenizer.json"})
    save_tokenizer(tmp_path / "tokenizer.json")
    probe = run_probe(model.wrapper)
    write_consolidated(tmp_path / "model", model.wrapper, model.config, info, probe, tmp_path / "tokenizer.json")
    command = ["--checkpoint", str(tmp_path / "model"), "--output", str(tmp_path / "llama"), "--format", "llama"]
    assert launch([*command, "--ignore-norm-eps"]) == 2
    assert "--ignore-norm-eps" in capsys.readouterr().err
    assert launch(command) == 0
    assert launch(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "llama" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    ids = torch.arange(VOCABULARY)[None]
    expected = load_consolidated(tmp_path / "model").wrapper.net(ids)
    torch.testing.assert_close(loaded(tmp_path / "llama")(ids).logits, expected, rtol=0, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    ours, text = load_tokenizer(tmp_path / "tokenizer.json"), "a cab is dear"
    assert tokenizer.encode(text) == ours.encode(text.encode()).tolist()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def save_tokenizer_that_adds_tokens(path):
    from tokenizers import Tokenizer, processors

    save_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", END)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9, pad_id=1, pad_token="b")
    tokenizer.save(str(path))


TOKENIZERS = {
    "byte": (None, 257, ["", "a", "def f(x):\n\treturn  'é\u2028日本 \x00\x7f🎉'", "a <|endoftext|> b\n"]),
    "plain file": (save_tokenizer, VOCABULARY, ["a cab is dear", "b", "a  a</s>"]),
    "file that adds tokens": (save_tokenizer_that_adds_tokens, VOCABULARY, ["a cab is dear", "b", "a a</s>"]),
}


@pytest.mark.parametrize(("save", "vocabulary_size", "texts"), TOKENIZERS.values(), ids=TOKENIZERS)
@torch.no_grad()
def test_text_becomes_the_ids_of_training_and_a_padded_batch_generates_the_same(tmp_path, save, vocabulary_size, texts):
    ours = load_tokenizer("byte")
    if save is not None:
        save(tmp_path / "tokenizer.json")
        ours = load_tokenizer(tmp_path / "tokenizer.json")
    model = built(vocabulary_size, ours, **{"model.max_seq_len": 64})
    export_llama(model, tmp_path / "llama")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    llama = loaded(tmp_path / "llama")
    assert theirs.eos_token_id == theirs.pad_token_id == ours.end_token
    assert llama.generation_config.eos_token_id == llama.generation_config.pad_token_id == ours.end_token
    assert theirs.model_max_length == 64
    assert len(theirs) == vocabulary_size
    ids = [ours.encode(text.encode()).tolist() for text in texts]
    assert [theirs.encode(text) for text in texts] == ids
    assert [theirs.decode(one) for one in ids] == [ours.decode(one).replace(END_TOKEN_TEXT, "</s>") for one in ids]
    assert max(map(len, ids)) > 10

    batch = theirs([text for text in texts if text], return_tensors="pt", padding=True)
    expected = llama.generate(**batch, do_sample=False, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    prompts = [torch.tensor(one) for one in ids if one]
    wrapper = model.wrapper
    wrapper.pad_value = ours.end_token
    generated = wrapper.generate(prompts, 12, temperature=0.0, eos_token=ours.end_token)
    assert generated.equal(expected)
    assert len(expected.unique()) > 2
