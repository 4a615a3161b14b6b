"""What is said of each key: in the fields, on the terminal, in docs/config.md and in configs/schema.json."""

import json
from pathlib import Path

import pytest

from nar_scale.commands.process import exit_status as command
from nar_scale.commands.train import main as train
from nar_scale.config import Config, config_reference, fixed_on_resume, learned_settings
from nar_scale.config.reference import explain, json_schema, reference_page
from nar_scale.config.yaml_text import read_yaml
from nar_scale.errors import CheckpointError, ConfigError
from nar_scale.training.checkpointing.resume_rules import check_same_model
from tests.errors import refused

from .helpers import config_with

REPOSITORY = Path(__file__).parents[2]
KEYS = {key.path: key for key in config_reference()}
FREE_OF_MODEL = {"dropout", "activation_checkpointing", "attention_kernel", "compile", "logits_chunk_size"}
FIXED = {
    "model.dim",
    "model.depth",
    "model.heads",
    "model.max_seq_len",
    "model.dim_head",
    "model.kv_heads",
    "model.feedforward",
    "model.feedforward_mult",
    "model.feedforward_dim",
    "model.feedforward_bias",
    "model.norm",
    "model.norm_eps",
    "model.positions",
    "model.rotary_theta",
    "model.rotary_dim",
    "model.rotary_interpolation_factor",
    "model.rotary_base_rescale_factor",
    "model.qk_norm",
    "model.qk_bias",
    "model.window",
    "model.embedding_std",
    "model.tie_embeddings",
    "model.tie_embedding_scale",
    "objective.kind",
    "objective.block_size",
    "objective.num_classes",
    "objective.prefix_length",
    "objective.self_conditioning",
    "objective.self_token_critic",
    "data.field",
    "data.class_field",
    "data.document_field",
    "data.sequential",
    "data.shuffle_window",
    "optimizer.kind",
    "training.seed",
}
WITHOUT_UNIT = {
    *("model.feedforward_mult", "model.norm_eps", "model.rotary_theta", "model.rotary_interpolation_factor"),
    *("model.rotary_base_rescale_factor", "model.tie_embedding_scale", "model.dropout"),
    *("objective.mask_prob", "objective.condition_drop_prob", "objective.no_replace_prob"),
    *("objective.autoregressive_weight", "objective.diffusion_weight"),
    *("objective.random_token_prob", "objective.self_conditioning_train_prob", "objective.critic_loss_weight"),
    *("data.sources.*.weight", "data.temperature", "data.curriculum.*.weights"),
    "model.embedding_std",
    *("optimizer.learning_rate", "optimizer.betas", "optimizer.eps", "optimizer.weight_decay"),
    *("optimizer.gradient_clipping", "optimizer.muon_learning_rate", "optimizer.muon_momentum"),
    *("schedule.decay_fraction", "schedule.final_factor"),
    *("training.initial_loss_scale", "training.zero_stage", "training.ema_decay", "training.seed"),
    *("logging.profile_ranks", "faults.straggler_ratio"),
    *("decoding.temperature", "decoding.top_p", "decoding.guidance", "decoding.threshold", "decoding.factor"),
    *("decoding.remask_amount", "decoding.reveal_threshold", "decoding.keep_threshold"),
}
FREE_TEXT = {
    "checkpoint.license",
    *(f"data.{name}" for name in ("directory", "train", "validation", "field", "class_field", "document_field")),
    *(f"data.{name}" for name in ("tokenizer", "index_directory", "cache_directory")),
    *(f"data.sources.*.{name}" for name in ("directory", "train", "validation")),
    *("training.run_directory", "zero.offload_directory", "decoding.stop"),
}


def test_every_key_is_there_once():
    assert len(config_reference()) == len(KEYS) == 164
    assert {path for path in KEYS if "." not in path} == set(Config.model_fields)
    assert {"data.sources.*.weight", "training.batch_size_warmup.*.from_step", "schedule.decay_fraction"} <= set(KEYS)


@pytest.mark.parametrize("path", KEYS)
def test_every_key_is_described_in_whole_sentences(path):
    description = KEYS[path].description
    assert len(description.split()) >= 3
    assert description.endswith(".")
    assert description[0].isupper() or description[0] == "`"
    assert "  " not in description


def test_every_number_has_a_unit_or_is_a_pure_one():
    numbers = {path for path, key in KEYS.items() if "integer" in key.type or "number" in key.type}
    assert len(numbers) > 60
    assert {path for path in numbers if KEYS[path].unit is None} == WITHOUT_UNIT
    assert {path for path, key in KEYS.items() if key.unit is not None} <= numbers


def test_every_value_is_limited_where_it_can_be():
    limited = [key for key in KEYS.values() if any(word in key.type for word in ("integer", "number", "string"))]
    assert {key.path for key in limited if key.allowed is None} == FREE_TEXT


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.dim", {"type": "integer", "required": True, "unit": "channels", "allowed": "> 0"}),
        ("model.window", {"type": "integer or null", "default": None, "required": False, "fixed_on_resume": True}),
        ("optimizer.kind", {"default": "adamw", "allowed": "adamw, lion, muon", "kinds": (), "fixed_on_resume": True}),
        (
            "objective.kind",
            {"required": True, "allowed": "autoregressive, non_autoregressive, block_diffusion, hybrid"},
        ),
        ("objective.loss", {"allowed": "weighted, unweighted", "kinds": ("non_autoregressive", "block_diffusion")}),
        ("objective.training_schedule", {"allowed": "linear, cosine, uniform_count, bell", "default": None}),
        ("optimizer.betas", {"type": "list of 2 numbers", "default": [0.9, 0.95], "allowed": ">= 0 and < 1"}),
        ("optimizer.eps", {"kinds": ("adamw", "muon"), "default": 1e-8}),
        ("data.sources", {"type": "mapping to sections", "default": {}}),
        ("data.curriculum.*.weights", {"type": "mapping to numbers", "allowed": ">= 0", "required": True}),
        ("logging.profile_ranks", {"type": "list of integers", "default": [0], "allowed": ">= 0"}),
        ("training.zero_stage", {"type": "integer", "allowed": "0, 1, 2, 3", "default": 2}),
        ("faults.step_timeout_seconds", {"type": "number", "unit": "s", "default": 300.0}),
        ("deepspeed", {"type": "mapping", "default": {}}),
    ],
)
def test_entries(path, expected):
    assert {name: getattr(KEYS[path], name) for name in expected} == expected


def test_what_may_not_change_on_a_restart():
    assert {path for path, key in KEYS.items() if key.fixed_on_resume} == FIXED
    assert {path for path in KEYS if path.startswith("model.")} - FIXED == {f"model.{name}" for name in FREE_OF_MODEL}
    kinds = ({}, {"objective.kind": "autoregressive"}, {"objective.kind": "block_diffusion", "objective.block_size": 4})
    assert set().union(*(fixed_on_resume(config_with(**changes)) for changes in kinds)) == FIXED


def test_the_value_is_compared_that_the_run_has():
    config = config_with(**{"objective.kind": "block_diffusion", "objective.block_size": 4, "training.seed": 7})
    fixed = fixed_on_resume(config)
    assert (fixed["objective.block_size"], fixed["training.seed"], fixed["model.dim"]) == (4, 7, 16)
    assert "objective.self_conditioning" not in fixed


@pytest.mark.parametrize(
    ("changes", "learned"),
    [
        ({"data.directory": "elsewhere", "data.index_directory": "indices", "data.cache_directory": "/scratch/88"}, []),
        ({"data.storage_options": {"key": "mine"}, "data.memory_map": False, "data.cache_gib": 1.0}, []),
        ({"training.micro_batch_size": 4, "training.zero_stage": 3, "zero.offload_parameters": "cpu"}, []),
        ({"checkpoint.every": 3, "logging.every": 3, "faults.step_timeout_seconds": 3.0}, []),
        ({"zero.quantized_gradients": True, "training.zero_stage": 3}, ["zero.quantized_gradients"]),
        ({"data.shuffle_window": 3, "model.dropout": 0.1}, ["model.dropout", "data.shuffle_window"]),
        ({"training.batch_size_warmup": [{"from_step": 0, "global_batch_size": 8}]}, ["training.batch_size_warmup"]),
        ({"training.global_batch_size": 16, "optimizer.eps": 0.1}, ["optimizer.eps", "training.global_batch_size"]),
        ({"deepspeed": {"communication_data_type": "fp32"}}, ["deepspeed.communication_data_type"]),
    ],
    ids=str,
)
def test_how_and_where_a_run_is_done_is_not_learned(changes, learned):
    before, now = learned_settings(config_with()), learned_settings(config_with(**changes))
    assert [key for key in {**before, **now} if before.get(key) != now.get(key)] == learned


def test_of_the_sources_of_a_mixture_the_weights_are_learned():
    sources = {"a": {"directory": "a", "weight": 1.0}, "b": {"directory": "b", "weight": 3.0}}
    names = {name for name in learned_settings(config_with(data={"sources": sources})) if "sources" in name}
    assert names == {f"data.sources.{name}.{key}" for name in "ab" for key in ("weight", "epochs")}


BLOCKS = {"objective.kind": "block_diffusion", "objective.block_size": 4}


@pytest.mark.parametrize(
    ("before", "now", "key", "values"),
    [
        ({}, BLOCKS, "objective.kind", "non_autoregressive, not block_diffusion"),
        (BLOCKS, {**BLOCKS, "objective.block_size": 6}, "objective.block_size", "4, not 6"),
        ({}, {"optimizer.kind": "muon"}, "optimizer.kind", "adamw, not muon"),
        ({}, {"model.window": 3}, "model.window", "None, not 3"),
        ({"training.seed": 1}, {}, "training.seed", "1, not 0"),
    ],
)
def test_a_run_is_not_resumed_with_what_is_fixed(before, now, key, values):
    with pytest.raises(CheckpointError) as caught:
        check_same_model(config_with(**now), config_with(**before), Path("runs/a/checkpoints/step-000000001"))
    for part in ("step-000000001", key, values):
        assert part in str(caught.value)


def test_a_run_is_resumed_with_what_is_not_fixed():
    changes = {"model.dropout": 0.1, "decoding.steps": 3, "optimizer.learning_rate": 1.0, "schedule.kind": "constant"}
    check_same_model(config_with(**changes, **{"training.zero_stage": 0}), config_with(), Path("step"))


def test_a_key_is_explained(capsys):
    with pytest.raises(SystemExit) as ended:
        train(["--explain", "optimizer.muon_momentum"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for part in ("optimizer.muon_momentum", ">= 0 and < 1", "default: 0.95", "kind muon"):
        assert part in text


def test_a_section_is_explained_with_its_keys():
    assert [line.split(":")[0] for line in explain("checkpoint").splitlines() if line[:1].strip()] == [
        path for path in KEYS if path.startswith("checkpoint")
    ]
    assert explain("data.sources.web.weight") == explain("data.sources.*.weight")
    assert "unit: steps" in explain("checkpoint.every")
    assert "fixed on resume" in explain("training.seed")
    assert "fixed on resume" not in explain("training.steps")


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("optimizer.muon_momentun", ["'optimizer.muon_momentun'", "'optimizer.muon_momentum'"]),
        ("optimzer.kind", ["'optimzer'", "'optimizer'"]),
        ("training.learning_rate", ["'training.learning_rate'", "'optimizer.learning_rate'"]),
        ("deepspeed.zero_optimization", ["'deepspeed.zero_optimization'"]),
        ("model.dim.x", ["'model.dim.x'"]),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest(key, named, capsys):
    with refused(ConfigError, *named):
        explain(key)
    assert command(lambda: train(["--explain", key]), ranks=True) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(name in captured.err for name in named)
    assert captured.err.count("\n") == 1


def test_the_reference_page_is_current():
    """Written by `python -m nar_scale.config.reference > docs/config.md`."""
    page = reference_page()
    assert (REPOSITORY / "docs" / "config.md").read_text() == page
    for path in KEYS:
        assert f"## {path}\n" in page if "." not in path else f"| `{path.partition('.')[2]}` |" in page


def test_the_json_schema_is_current():
    """Written by `python -m nar_scale.config.reference --json-schema > configs/schema.json`."""
    assert (REPOSITORY / "configs" / "schema.json").read_text() == json_schema()


def problems(value, schema, definitions, place=""):
    """Where a value does not fit a JSON Schema, by the keywords that ours has."""
    known = {"$ref", "$defs", "anyOf", "oneOf", "discriminator", "type", "enum", "const", "required", "properties"}
    known |= {"additionalProperties", "items", "prefixItems", "minItems", "maxItems", "title", "description", "default"}
    known |= {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "x-unit", "x-fixed-on-resume"}
    assert not set(schema) - known
    if "$ref" in schema:
        yield from problems(value, definitions[schema["$ref"].rpartition("/")[2]], definitions, place)
    fitting = [
        sum(not list(problems(value, each, definitions)) for each in schema[key])
        for key in ("anyOf", "oneOf")
        if key in schema
    ]
    if fitting and fitting[0] != 1:  # of our alternatives never two fit
        yield place
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
    kind = {"number": (int, float), **kinds}.get(schema.get("type"), object)
    if not isinstance(value, kind) or (isinstance(value, bool) and schema.get("type") in ("integer", "number")):
        yield place
        return
    if value not in schema.get("enum", [schema.get("const", value)]):
        yield place
    if isinstance(value, dict):
        yield from (f"{place}.{name}" for name in schema.get("required", ()) if name not in value)
        for name, inner in value.items():
            rest = schema.get("additionalProperties", True)
            own = schema.get("properties", {}).get(name, rest)
            if own is False:
                yield f"{place}.{name}"
            elif own is not True:
                yield from problems(inner, own, definitions, f"{place}.{name}")
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield place
        for item, own in zip(value, schema.get("prefixItems", [schema.get("items", {})] * len(value))):
            yield from problems(item, own, definitions, f"{place}.*")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        above, below = schema.get("exclusiveMinimum", value - 1), schema.get("exclusiveMaximum", value + 1)
        if not (low <= value <= high and above < value < below):
            yield place


def refused_by_schema(values):
    schema = json.loads((REPOSITORY / "configs" / "schema.json").read_text())
    return list(problems(values, schema, schema["$defs"]))


def read(path):
    """A YAML file as YAML 1.2 has it, where 3e-4 is a number."""
    return read_yaml(path.read_text(), str(path))


@pytest.mark.parametrize(
    "path",
    [*sorted((REPOSITORY / "configs").glob("*.yaml")), *sorted((Path(__file__).parent / "saved").glob("*.yaml"))],
    ids=lambda path: path.stem,
)
def test_configs_fit_the_json_schema(path):
    values = read(path)
    if path.parent.name == "saved":  # with keys of all kinds, which only the loader drops
        assert refused_by_schema(values)
        return
    assert refused_by_schema(values) == []


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("model.dmi", 3, ".model.dmi"),
        ("model.dim", 0, ".model.dim"),
        ("model.dim", True, ".model.dim"),
        ("model.norm", "batchnorm", ".model.norm"),
        ("model.window", "all", ".model.window"),
        ("optimizer.kind", "sgd", ".optimizer"),
        ("optimizer.muon_momentum", 0.9, ".optimizer"),
        ("optimizer.betas", [0.9], ".optimizer"),
        ("objective.kind", "non_autoregressive", None),
        ("schedule.kind", "wsd", None),
        ("logging.image_shape", [3, 0], ".logging.image_shape"),
        ("logging.image_shape", [3, 4], None),
        ("training.batch_size_warmup", [{"from_step": 0}], ".training.batch_size_warmup.*.global_batch_size"),
        ("data.sources", {"web": {"directory": "a", "weight": -1}}, ".data.sources.web.weight"),
        ("deepspeed", {"anything": {"inside": 1}}, None),
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(key, value, place):
    values = {**read(REPOSITORY / "configs" / "quickstart_ar.yaml"), "optimizer": {"learning_rate": 1e-3}}
    section, _, name = key.partition(".")
    values[section] = {**values.get(section, {}), name: value} if name else value
    assert refused_by_schema(values) == ([] if place is None else [place])
