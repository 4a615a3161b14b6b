import copy
from pathlib import Path

import pytest
import yaml

from nar_scale.config import Config, check_run, dump_config, flat_settings, load_config, validate_config
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import VALUES, config_with

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


def test_sections_and_defaults(yaml_file):
    config = load_config(yaml_file)
    assert config.model.dim == 16
    assert config.objective.schedule == "linear"
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.training.run_directory == "runs/small"


def test_a_config_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        config_with().model.dim = 3


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.dims", 3, ["'model.dims'", "'model.dim'"]),
        ("model.max_seq_length", 3, ["'model.max_seq_length'", "'model.max_seq_len'"]),
        ("modle", {}, ["'modle'", "'model'"]),
        ("model.dim", "16", ["model.dim", "integer", "'16'"]),
        ("model.dim", 16.0, ["model.dim", "integer", "16.0"]),
        ("model.dim", True, ["model.dim", "integer", "True"]),
        ("model.dim", 0, ["model.dim", 0]),
        ("model.qk_norm", 1, ["model.qk_norm", "boolean", 1]),
        ("model.norm", "batchnorm", ["model.norm", "'rmsnorm'", "'layernorm'", "'batchnorm'"]),
        ("objective.no_replace_prob", 1.1, ["objective.no_replace_prob", 1.1]),
        ("training.zero_stage", 4, ["training.zero_stage", "0, 1, 2 or 3", 4]),
        ("model.heads", 3, ["dim", 16, "heads", 3]),
        ("model.kv_heads", 3, ["heads", 2, "kv_heads", 3]),
        ("optimizer.betas", [0.9], ["optimizer.betas.1"]),
        ("model.window", 0, ["model.window", 0]),
        ("model.feedforward_dim", 0, ["model.feedforward_dim", 0]),
        ("model.norm_eps", 0.0, ["model.norm_eps", 0.0]),
        ("model.rotary_interpolation_factor", 0.5, ["model.rotary_interpolation_factor", 1, 0.5]),
        ("model.rotary_base_rescale_factor", 0.5, ["model.rotary_base_rescale_factor", 1, 0.5]),
        ("model.attention_kernel", "flash", ["model.attention_kernel", "'sdpa'", "'flex'", "'flash'"]),
        ("model.activation_checkpointing", "some", ["model.activation_checkpointing", "'selective'", "'some'"]),
        ("model.logits_chunk_size", 0, ["model.logits_chunk_size", 0]),
        ("objective.masking", "binomial", ["objective.masking", "'exact'", "'bernoulli'", "'binomial'"]),
        ("objective.schedule", "sigmoid", ["objective.schedule", "'uniform_count'", "'sigmoid'"]),
        ("objective.num_classes", 0, ["objective.num_classes", 0]),
        ("objective.prefix_length", -1, ["objective.prefix_length", -1]),
        ("objective.prefix_length", 12, ["objective.prefix_length", "model.max_seq_len", 12]),
        ("objective.condition_drop_prob", 0.1, ["condition_drop_prob", "num_classes", "prefix_length"]),
        ("objective.guidance_scale", 2.0, ["decoding.guidance", "num_classes", "prefix_length"]),
        ("objective.guidance_scale", -1.0, ["decoding.guidance", -1.0]),
        ("objective.steps", 0, ["decoding.steps", 0]),
    ],
)
def test_wrong_keys_and_values_are_named(key, value, named):
    with refused(ConfigError, *named, "(in a test)"):
        config_with(**{key: value})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.attention_kernel": "flex", "model.dropout": 0.1}, ["attention_kernel flex", "dropout"]),
        (
            {
                "objective.kind": "autoregressive",
                "objective.attention_z_loss": True,
                "model.attention_kernel": "flex",
            },
            ["objective.attention_z_loss", "model.attention_kernel sdpa"],
        ),
        (
            {"objective.kind": "block_diffusion", "objective.block_size": 5},
            ["model.max_seq_len", 12, "objective.block_size", 5],
        ),
        (
            {"objective.kind": "hybrid", "objective.block_size": 5},
            ["model.max_seq_len", 12, "objective.block_size", 5],
        ),
        (
            {"objective.kind": "hybrid", "objective.block_size": 4, "logging.image_shape": [3, 4]},
            ["logging.image_shape"],
        ),
        ({"objective.num_classes": 2, "objective.condition_drop_prob": 1.0}, ["objective.condition_drop_prob", 1.0]),
        ({"objective.num_classes": 2}, ["objective.num_classes", "data.class_field"]),
        ({"data.class_field": "cls"}, ["objective.num_classes", "data.class_field"]),
        (
            {"data.class_field": "cls", "objective.kind": "autoregressive"},
            ["objective.num_classes", "data.class_field"],
        ),
        ({"logging.image_shape": [3, 5]}, ["logging.image_shape", "3 x 5", 15, "model.max_seq_len", 12]),
        ({"objective.kind": "autoregressive", "logging.image_shape": [3, 4]}, ["logging.image_shape"]),
        ({"schedule.warmup_steps": 10}, ["schedule.warmup_steps", "training.steps", 10]),
        ({"logging": [1]}, ["logging", "section", "[1]"]),
        ({"optimizer": [1]}, ["optimizer", "section", "[1]"]),
        ({"optimizer.learning_rate": float("inf")}, ["optimizer.learning_rate", "inf"]),
        ({"training.seed": 2**63}, ["training.seed", 2**63]),
        ({"faults.skip_spikes": True, "faults.spike_sigma": 0.0}, ["faults.skip_spikes", "spike_sigma"]),
        ({"logging.evaluate_every": 5, "data.validation": ""}, ["logging.evaluate_every", "data.validation"]),
        ({"logging.profile_ranks": [1]}, ["logging.profile_ranks", "profile_steps"]),
        ({"logging.profile_steps": [3, 2]}, ["logging.profile_steps", "[3, 2]"]),
        (
            {"data.sources": {"a": {"directory": "a", "weight": float("inf")}}, "data.directory": None},
            ["data.sources.a.weight", "inf"],
        ),
        ({"model.feedforward_mult": float("inf")}, ["model.feedforward_mult", "inf"]),
        ({"faults.straggler_ratio": float("inf")}, ["faults.straggler_ratio", "inf"]),
        ({"logging.profile_steps": [11, 12]}, ["logging.profile_steps", 11, 10]),
        ({"logging.flops_step": 11}, ["logging.flops_step", 11, 10]),
        ({"logging.image_shape": [0, 4]}, ["logging.image_shape.0", 0]),
    ],
)
def test_settings_that_contradict_each_other_are_named(changes, named):
    with refused(ConfigError, *named):
        config_with(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "objective.num_classes": 2,
            "objective.condition_drop_prob": 0.1,
            "decoding.guidance": 3.0,
            "data.class_field": "cls",
        },
        {"logging.image_shape": (3, 4)},
        {"objective.prefix_length": 11, "decoding.guidance": 0.0},
        {"objective.kind": "block_diffusion", "objective.block_size": 4},
        {"objective.kind": "hybrid", "objective.block_size": 4, "decoding.sampler": "left_to_right"},
        {"model.attention_kernel": "flex", "model.window": 1},
    ],
)
def test_settings_that_fit_each_other_are_not_refused(changes):
    config = config_with(**changes)
    for key, value in changes.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("training.learning_rate", ["'training.learning_rate'", "'optimizer.learning_rate'"]),
        ("logging.xyzzy", ["'logging.xyzzy'", "evaluate_every"]),
    ],
)
def test_a_key_without_likeness_is_not_taken_for_a_sibling(key, named):
    with refused(ConfigError, *named):
        config_with(**{key: 3})


@pytest.mark.parametrize("key", ["model", "model.dim", "objective.kind", "training.global_batch_size"])
def test_missing_keys_are_named(key):
    values = copy.deepcopy(VALUES)
    *sections, name = key.split(".")
    del (values[sections[0]] if sections else values)[name]
    with refused(ConfigError, f"'{key}'"):
        validate_config(values, "a test")


def test_every_problem_is_reported_at_once():
    with refused(ConfigError, "'model.dims'", "training.steps", "'objective.mask_prob'", "optimizer.kind"):
        config_with(**{"model.dims": 1, "training.steps": -1, "objective.mask_probs": 0.1, "optimizer.kind": "sgd"})


@pytest.mark.parametrize(
    ("text", "number"), [("3e-4", 3e-4), ("1E-3", 1e-3), (".5e-2", 0.005), ("2.e+0", 2.0), ("0.001", 0.001)]
)
def test_overrides_win_and_numbers_are_numbers(yaml_file, text, number):
    config = load_config(yaml_file, [f"optimizer.learning_rate={text}", "model.qk_norm=true", "schedule.kind=wsd"])
    assert config.optimizer.learning_rate == number
    assert config.model.qk_norm is True
    assert config.schedule.kind == "wsd"
    yaml_file.write_text(yaml_file.read_text().replace("learning_rate: 0.001", f"learning_rate: {text}"))
    assert load_config(yaml_file).optimizer.learning_rate == number


def test_overrides_reach_raw_deepspeed_settings(yaml_file):
    config = load_config(
        yaml_file, ["deepspeed.zero_optimization.overlap_comm=false", "deepspeed.comms_logger={a: [1]}"]
    )
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": False}, "comms_logger": {"a": [1]}}


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.dim", ["'model.dim'", "section.key=value"]),
        ("dim=3", ["'dim=3'", "section.key=value"]),
        ("model.=3", ["'model.=3'", "section.key=value"]),
        ("model.dim.x=3", ["'model.dim.x=3'", "'dim'"]),
        ("model.dmi=3", ["'model.dmi'", "'model.dim'"]),
        ("model.dim=[", ["'model.dim=['", "YAML"]),
        (f"deepspeed.x={'[' * 3000}", ["nested"]),
    ],
)
def test_wrong_overrides_are_refused(yaml_file, override, named):
    with refused(ConfigError, *named):
        load_config(yaml_file, [override])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: [", ["YAML"]),
        ("hello", ["sections", "'hello'"]),
        ("", ["sections", "None"]),
        ("model: !!python/object/apply:os.getcwd []", ["YAML", "python/object/apply:os.getcwd"]),
        ("model: {dim: 1}\nmodel: {depth: 2}", ["YAML", "'model'", "line 2, column 1"]),
        ("model: {dim: 1, dim: 1}", ["YAML", "'dim'"]),
        ("model: {dim: 1, depth: 2\nobjective: {}", ["YAML", "line 2, column 10: "]),
        ("training: {batch_size_warmup: [{a: 1, a: 2}]}", ["YAML", "'a'"]),
    ],
)
def test_unusable_files_are_refused(tmp_path, text, named):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with refused(ConfigError, path, *named):
        load_config(path)


def test_a_merge_may_be_merged_again_and_what_is_written_wins(yaml_file):
    first, again = "&first {<<: {loss_scale: 1, hysteresis: 2}, loss_scale: 3}", "{<<: *first}"
    yaml_file.write_text(yaml_file.read_text() + f"deepspeed:\n  a: {{b: {first}}}\n  c: {again}\n")
    merged = {"loss_scale": 3, "hysteresis": 2}
    assert load_config(yaml_file).deepspeed == {"a": {"b": merged}, "c": merged}


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"\xff\xfe\x00")
    with refused(ConfigError, tmp_path / "model.pt", "UTF-8"):
        load_config(tmp_path / "model.pt")


def test_a_section_without_keys_is_one_without_settings(yaml_file):
    yaml_file.write_text(yaml_file.read_text() + "logging:\n  # every: 5\ndeepspeed:\n")
    assert load_config(yaml_file) == config_with(**{"training.run_directory": "runs/small"})
    assert load_config(yaml_file, ["logging.every=5"]).logging.every == 5
    with refused(ConfigError, "'model.dim'", "'model.depth'"):
        validate_config({**VALUES, "model": None}, "a test")


def test_a_missing_key_is_explained():
    with refused(ConfigError, "objective.block_size", "divides", "model.max_seq_len"):
        validate_config({**VALUES, "objective": {"kind": "hybrid"}}, "the test")


def test_a_missing_file_is_named(tmp_path):
    with refused(ConfigError, tmp_path / "absent.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_a_dumped_config_reads_back_unchanged(tmp_path):
    config = config_with(
        **{
            "training.run_directory": "somewhere",
            "optimizer.betas": [0.8, 0.99],
            "optimizer.eps": 1e-12,
            "model.kv_heads": 1,
            "data.tokenizer": "byte",
            "deepspeed.fp16.loss_scale": 0,
        }
    )
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert set(yaml.safe_load(dump_config(config))) == set(Config.model_fields)


def test_a_saved_config_stays_readable_that_no_run_may_start_with(tmp_path):
    """As runs saved theirs before the checks came that now refuse them."""
    values = copy.deepcopy(VALUES)
    values["training"].update(seed=2**63, zero_stage=0)
    values["data"]["validation"] = ""
    values["logging"] = {"evaluate_every": 2, "profile_ranks": [1], "flops_step": 11}
    values["faults"] = {"skip_spikes": True, "spike_sigma": 0.0, "straggler_ratio": float("inf")}
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(validate_config(values, "a test")))
    config = load_config(path)
    assert config.faults.straggler_ratio == float("inf")
    run = ("training.seed", "faults.skip_spikes", "faults.straggler_ratio")
    with refused(ConfigError, *run, "logging.evaluate_every", "logging.profile_ranks", "logging.flops_step"):
        check_run(config)


def test_a_misspelt_key_is_named_before_the_missing_one_that_it_should_be():
    values = copy.deepcopy(VALUES)
    values["optimizer"]["learning_rat"] = values["optimizer"].pop("learning_rate")
    misspelt, missing = "unknown key 'optimizer.learning_rat'", "missing key 'optimizer.learning_rate'"
    with refused(ConfigError, misspelt, missing) as caught:
        validate_config(values, "small.yaml")
    assert str(caught.value).index(misspelt) < str(caught.value).index(missing)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path):
    config = load_config(path)
    assert config.training.run_directory == f"runs/{path.stem}"


def test_the_quickstarts_differ_in_objective_and_decoding_alone():
    nar, ar = (yaml.safe_load((CONFIGS / f"quickstart_{kind}.yaml").read_text()) for kind in ("nar", "ar"))
    own = {"loss": "unweighted", "training_schedule": "bell"}
    assert nar.pop("objective") == {"kind": "non_autoregressive", **own}
    assert ar.pop("objective") == {"kind": "autoregressive"}
    assert nar.pop("decoding") == {"sampler": "random", "temperature": 0.7}
    assert ar.pop("decoding") == {"temperature": 0.7}
    assert nar == ar


PATHS = (
    "training.run_directory",
    "data.directory",
    "data.tokenizer",
    "data.index_directory",
    "data.cache_directory",
    "zero.offload_directory",
)


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    offload = {"zero.offload_optimizer": "nvme", "training.zero_stage": 3}
    config = config_with(**dict.fromkeys(PATHS, "~/x"), **offload)
    assert {flat_settings(config)[path] for path in PATHS} == {"/home/me/x"}
    source = config_with(**{"data.directory": None, "data.sources": {"web": {"directory": "~"}}})
    assert source.data.sources["web"].directory == "/home/me"
    assert config_with(**{"data.tokenizer": "byte", "data.directory": "a~/~b"}).data.directory == "a~/~b"
    with refused(ConfigError, "data.directory", "~nobody-of-this-name"):
        config_with(**{"data.directory": "~nobody-of-this-name/x"})
