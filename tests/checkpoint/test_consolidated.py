import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nar_scale.checkpoint import (
    WEIGHT,
    CheckpointStore,
    ModelInfo,
    Partition,
    TrainingState,
    check_probe,
    consolidate,
    list_files,
    load_consolidated,
    partition_file,
    record_files,
    run_probe,
    save_probe,
    write_partitions,
)
from nar_scale.checkpoint.consolidated import describe_consolidated, write_consolidated
from nar_scale.config import dump_config
from nar_scale.decoding import DecodeManifest
from nar_scale.errors import CheckpointError
from nar_scale.objectives import AutoregressiveWrapper, build_wrapper
from tests.config.helpers import config_with
from tests.data.test_tokenizers import byte_level
from tests.errors import refused
from tests.objectives.helpers import random_tokens

VOCABULARY = 257
NAR = {"objective.schedule": "cosine", "decoding.steps": 7, "training.run_directory": "runs/x"}
AR = {"objective.kind": "autoregressive", "training.run_directory": "runs/x"}
MODELS = {
    "nar": NAR,
    "nar_all": {**NAR, "objective.self_conditioning": True, "objective.self_token_critic": True},
    "nar_tied": {**NAR, "model.tie_embeddings": True, "model.positions": "learned"},
    "ar": {**AR, "model.norm": "layernorm"},
    "ar_tied": {**AR, "model.tie_embeddings": True, "model.qk_norm": True, "model.kv_heads": 1},
}
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)


def built(settings=NAR):
    torch.manual_seed(0)
    config = config_with(**settings)
    wrapper = build_wrapper(config, VOCABULARY)
    for parameter in wrapper.parameters():  # norms and biases too shall differ from what they are born with
        torch.nn.init.normal_(parameter, std=0.3)
    return config, wrapper


def export(output, settings=NAR, *, change=None, **options):
    config, wrapper = built(settings)
    info = ModelInfo(VOCABULARY, "byte", 30, 240, "fp32", DecodeManifest.of(config, wrapper.mask_id, 256))
    probe = run_probe(wrapper)
    if change is not None:
        change(wrapper, probe)
    difference = write_consolidated(output, wrapper, config, info, probe, **options)
    return config, wrapper, info, difference


def generated(wrapper):
    torch.manual_seed(0)
    if isinstance(wrapper, AutoregressiveWrapper):
        return wrapper.generate(torch.tensor([[1, 2]]), 4)
    return wrapper.generate(2)


@pytest.fixture
def exported(tmp_path):
    export(tmp_path / "model")
    return tmp_path / "model"


@every_model
@pytest.mark.parametrize("shard_bytes", [2**30, 10_000, 1])
def test_a_model_comes_back_as_it_was(tmp_path, settings, shard_bytes):
    output = tmp_path / "deep" / "model"
    config, wrapper, info, difference = export(output, settings, shard_bytes=shard_bytes)
    loaded = load_consolidated(output)
    assert difference == 0
    assert (loaded.config, loaded.info) == (config, info)
    assert loaded.tokenizer.vocabulary_size == VOCABULARY
    assert not loaded.wrapper.training
    wrapper.eval()
    tokens = random_tokens(3, 12, num_tokens=VOCABULARY)
    assert torch.equal(loaded.wrapper.net(tokens), wrapper.net(tokens))
    weights = dict(loaded.wrapper.named_parameters())
    assert set(weights) == set(dict(wrapper.named_parameters()))
    assert all(torch.equal(weight, weights[name]) for name, weight in wrapper.named_parameters())
    shards = sorted(output.glob("*.safetensors"))
    assert (len(shards) == 2) is (shard_bytes == 2**30)
    assert not list(output.parent.glob(".*"))
    assert torch.equal(generated(loaded.wrapper), generated(wrapper))


def test_shards_hold_every_weight_once_within_their_size(tmp_path):
    _, wrapper, *_ = export(tmp_path / "model", shard_bytes=10_000)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    seen = {}
    for shard in sorted((tmp_path / "model").glob("model-*.safetensors")):
        weights = load_file(shard)
        assert len(weights) == 1 or sum(weight.nbytes for weight in weights.values()) <= 10_000
        assert all(index["weight_map"][name] == shard.name for name in weights)
        assert not seen.keys() & weights.keys()
        seen.update(weights)
    assert seen.keys() == dict(wrapper.named_parameters()).keys()
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in seen.values())


def test_tied_weights_stay_tied(tmp_path):
    export(tmp_path / "model", MODELS["ar_tied"])
    net = load_consolidated(tmp_path / "model", dtype=torch.bfloat16).wrapper.net
    assert net.to_logits.weight is net.token_emb.weight
    assert net.token_emb.weight.dtype == torch.bfloat16


def exported_with_average(output, settings=NAR, **options):
    config, wrapper = built({**settings, "training.ema_decay": 0.99})
    average = {name: weight + 1 for name, weight in wrapper.state_dict().items()}
    info = ModelInfo(VOCABULARY, "byte", 30, 240, "fp32", DecodeManifest.of(config, wrapper.mask_id, 256))
    write_consolidated(output, wrapper, config, info, run_probe(wrapper), average=average, **options)
    return wrapper


@every_model
@pytest.mark.parametrize("shard_bytes", [2**30, 10_000])
def test_weights_or_their_moving_average_are_loaded(tmp_path, settings, shard_bytes):
    wrapper = exported_with_average(tmp_path / "model", settings, shard_bytes=shard_bytes)
    for kind, shift in (("model", 0), ("ema", 1)):
        loaded = dict(load_consolidated(tmp_path / "model", weights=kind).wrapper.named_parameters())
        assert set(loaded) == set(dict(wrapper.named_parameters()))
        assert all(torch.equal(loaded[name], weight + shift) for name, weight in wrapper.named_parameters())
    files = sorted(path.name for path in (tmp_path / "model").glob("ema*"))
    assert (files == ["ema.safetensors"]) is (shard_bytes == 2**30)
    assert ("ema.safetensors.index.json" in files) is (shard_bytes == 10_000)
    averages = [load_file(path) for path in (tmp_path / "model").glob("ema*.safetensors")]
    assert sorted(name for file in averages for name in file) == sorted(dict(wrapper.named_parameters()))  # each once


def test_an_average_that_is_not_there_is_not_loaded(exported, tmp_path):
    config = exported / "config.yaml"
    config.write_text("".join(line for line in config.open() if "ema_decay" not in line))  # as older exports
    assert load_consolidated(exported, verify=False).config.training.ema_decay is None
    with refused(CheckpointError, exported, "training.ema_decay"):
        load_consolidated(exported, weights="ema", verify=False)
    exported_with_average(tmp_path / "lost")
    (tmp_path / "lost" / "ema.safetensors").unlink()
    with refused(CheckpointError, tmp_path / "lost", "ema.safetensors", "missing"):
        load_consolidated(tmp_path / "lost", weights="ema")
    with refused(CheckpointError, tmp_path / "lost", "net.attn_layers.blocks.0.attention.to_keys.weight"):
        load_consolidated(tmp_path / "lost", weights="ema", verify=False)


def test_how_to_decode_is_written_down():
    def described(settings):
        config, wrapper = built(settings)
        return DecodeManifest.of(config, wrapper.mask_id, 256)

    nar, critic, ar = (described(MODELS[name]) for name in ("nar", "nar_all", "ar"))
    assert nar == DecodeManifest(decoding=config_with(**NAR).sampler(), schedule="cosine", mask_id=257, end_token=256)
    assert critic.decoding.sampler == "confidence"
    assert nar.decoding.steps == critic.decoding.steps == 7
    assert ar == DecodeManifest(decoding=config_with(**AR).sampler(), schedule=None, mask_id=None, end_token=256)
    assert ar.decoding.sampler == "left_to_right"


def test_an_existing_output_is_never_overwritten(exported):
    before = {path: path.read_bytes() for path in exported.iterdir()}
    with refused(CheckpointError, exported, "exists", "--output"):
        export(exported)
    assert {path: path.read_bytes() for path in exported.iterdir()} == before


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused(CheckpointError, tmp_path / "file" / "model", "Not a directory"):
        export(tmp_path / "file" / "model")


def other_weights(wrapper, probe):
    wrapper.net.to_logits.weight.data[3] += 0.01


def other_logits(wrapper, probe):
    probe["logits"][0, 1, 2] += 0.01 * probe["logits"].abs().max()


def not_a_number(wrapper, probe):
    wrapper.net.to_logits.weight.data[3] = float("nan")


@pytest.mark.parametrize("change", [other_weights, other_logits, not_a_number])
def test_a_model_that_is_not_the_live_one_is_not_published(tmp_path, change):
    with refused(CheckpointError, "logits", "live model"):
        export(tmp_path / "model", change=change)
    assert list(tmp_path.iterdir()) == []


def test_a_probe_of_another_model_is_told_apart(exported, tmp_path):
    _, other = built({**NAR, "model.max_seq_len": 10})
    with refused(CheckpointError, exported / "probe.safetensors", "kind"):
        check_probe(exported, other)
    with refused(CheckpointError, tmp_path / "nowhere" / "probe.safetensors", "read"):
        check_probe(tmp_path / "nowhere", other)


def rewrite(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("net.to_logits.weight"), ["net.to_logits.weight", 1]),
        (
            lambda weights: weights.update(extra=torch.zeros(1)),
            ["model.safetensors", "extra", "config.yaml"],
        ),
        (
            lambda weights: weights.update({"net.to_logits.weight": torch.zeros(258, 8)}),
            ["net.to_logits.weight", [258, 8], [258, 16]],
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(exported, change, named):
    rewrite(exported, change)
    with refused(CheckpointError, exported, "model.safetensors"):
        load_consolidated(exported)
    with refused(CheckpointError, *named):
        load_consolidated(exported, verify=False)


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "model.json", "probe.safetensors"])
def test_any_changed_byte_is_refused(exported, name):
    content = bytearray((exported / name).read_bytes())
    content[len(content) // 2] ^= 1
    (exported / name).write_bytes(content)
    with refused(CheckpointError, exported, name, "checksum"):
        load_consolidated(exported)


def test_a_truncated_file_is_refused(exported):
    file = exported / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with refused(CheckpointError, exported, "model.safetensors", file.stat().st_size, file.stat().st_size + 1):
        load_consolidated(exported)
    with refused(CheckpointError, file, "read"):
        load_consolidated(exported, verify=False)


def test_another_directory_is_told_apart(tmp_path):
    with refused(CheckpointError, tmp_path, "model.json", "nar-scale consolidate"):
        load_consolidated(tmp_path)


def finished_run(run, settings=NAR, steps=(10, 20), **state):
    """What training on one rank leaves behind."""
    config, wrapper = built(settings)
    store = CheckpointStore(run / "checkpoints")
    for step in steps:
        wrapper.net.token_emb.weight.data += 0.1
        writing = store.prepare(step)
        parts = [
            Partition(name, tuple(weight.shape), 0, {WEIGHT: weight.detach().flatten()})
            for name, weight in wrapper.named_parameters()
        ]
        write_partitions(writing / partition_file(0), lambda parts=parts: parts)
        described = {"vocabulary_size": VOCABULARY, "tokenizer": "byte", "end_token": 256, **state}
        TrainingState(step, step * 8, "f", 0, 8, 1, 0, **described).save(writing)
        (writing / "config.yaml").write_text(dump_config(config))
        save_probe(writing, run_probe(wrapper))
        store.publish(writing, step, record_files(writing, list_files(writing)))
    return store, wrapper


@every_model
def test_a_run_is_consolidated(tmp_path, settings):
    _, wrapper = finished_run(tmp_path / "run", settings)
    assert consolidate(tmp_path / "run", tmp_path / "model") == 0
    loaded = load_consolidated(tmp_path / "model")
    assert (loaded.info.step, loaded.info.samples, loaded.info.tokenizer) == (20, 160, "byte")
    tokens = random_tokens(2, 12)
    assert torch.equal(loaded.wrapper.net(tokens), wrapper.eval().net(tokens))


@pytest.mark.parametrize("form", ["text", "ids", None])
def test_prompts_are_encoded_as_the_data_was(tmp_path, form):
    file = byte_level(tmp_path / "t.json", ["<|endoftext|>"])
    state = {} if form is None else {"special_tokens": form}  # None: made before this was recorded
    store, _ = finished_run(tmp_path / "run", steps=(10,), tokenizer=str(file), **state)
    if form is None:
        content = json.loads((store.path(10) / "state.json").read_text())
        del content["special_tokens"]
        (store.path(10) / "state.json").write_text(json.dumps(content))
        manifest = store.path(10) / "manifest.json"
        manifest.write_text(json.dumps(record_files(store.path(10), list_files(store.path(10)))))
    consolidate(tmp_path / "run", tmp_path / "model", step=10)
    loaded = load_consolidated(tmp_path / "model")
    assert (256 in loaded.tokenizer.encode(b"a<|endoftext|>")) == (form != "text")
    content = json.loads((tmp_path / "model" / "model.json").read_text())
    assert content.pop("special_tokens") == (form or "ids")
    (tmp_path / "model" / "model.json").write_text(json.dumps(content))
    assert 256 in describe_consolidated(tmp_path / "model", verify=False).tokenizer.encode(b"a<|endoftext|>")


def test_a_run_without_the_wanted_checkpoint(tmp_path):
    store, _ = finished_run(tmp_path / "run")
    with refused(CheckpointError, tmp_path / "run", "step 15", 10, 20):
        consolidate(tmp_path / "run", tmp_path / "model", step=15)
    (store.path(20) / "state.json").write_text("{}")
    with refused(CheckpointError, store.path(20), "state.json"):
        consolidate(tmp_path / "run", tmp_path / "model", step=20)
    consolidate(tmp_path / "run", tmp_path / "model")
    assert load_consolidated(tmp_path / "model").info.step == 10
    for step in store.steps():
        shutil.rmtree(store.path(step))
    with refused(CheckpointError, tmp_path / "run", "none"):
        consolidate(tmp_path / "run", tmp_path / "other")
    shutil.rmtree(store.directory)
    with refused(CheckpointError, tmp_path / "run", "checkpoints"):
        consolidate(tmp_path / "run", tmp_path / "other")


def test_training_state_round_trip(tmp_path):
    state = TrainingState(3, 24, "fingerprint", 1, 8, 2, 3, VOCABULARY, None, None)
    state.save(tmp_path)
    assert TrainingState.load(tmp_path) == state
    for text in ("{", '{"step": 3}', "[]"):
        (tmp_path / "state.json").write_text(text)
        with refused(CheckpointError, tmp_path / "state.json"):
            TrainingState.load(tmp_path)
    with refused(CheckpointError, tmp_path / "nowhere" / "state.json"):
        TrainingState.load(tmp_path / "nowhere")
