"""Sections of several kinds: each key belongs to its kinds, and what was saved with the keys of all is still read."""

from pathlib import Path

import pytest
import yaml

from nar_scale.config import (
    AdamWConfig,
    AutoregressiveConfig,
    BlockDiffusionConfig,
    CosineScheduleConfig,
    HybridConfig,
    LionConfig,
    MuonConfig,
    NonAutoregressiveConfig,
    check_run,
    dump_config,
    load_config,
)
from nar_scale.errors import ConfigError
from tests.errors import refused

from .helpers import config_with

SAVED = Path(__file__).parent / "saved"  # by the code before each kind had a class of its own
AR = {"objective.kind": "autoregressive"}
BLOCKS = {"objective.kind": "block_diffusion", "objective.block_size": 4}
HYBRID = {"objective.kind": "hybrid", "objective.block_size": 4}


@pytest.mark.parametrize(
    ("changes", "objective", "optimizer"),
    [
        ({}, NonAutoregressiveConfig, AdamWConfig),
        ({**AR, "optimizer.kind": "lion"}, AutoregressiveConfig, LionConfig),
        ({**BLOCKS, "optimizer.kind": "muon"}, BlockDiffusionConfig, MuonConfig),
        (HYBRID, HybridConfig, AdamWConfig),
    ],
)
def test_each_kind_is_a_class(changes, objective, optimizer):
    config = config_with(**changes)
    assert (type(config.objective), type(config.optimizer)) == (objective, optimizer)
    assert type(config.schedule) is CosineScheduleConfig


@pytest.mark.parametrize(
    ("changes", "key", "owners", "kind"),
    [
        ({"objective.mask_prob": 0.1}, "objective.mask_prob", "autoregressive", "non_autoregressive"),
        ({"objective.block_size": 4}, "objective.block_size", "block_diffusion or hybrid", "non_autoregressive"),
        ({**HYBRID, "objective.num_classes": 3}, "objective.num_classes", "non_autoregressive", "hybrid"),
        ({**BLOCKS, "objective.diffusion_weight": 0.5}, "objective.diffusion_weight", "hybrid", "block_diffusion"),
        (
            {**AR, "objective.schedule": "cosine"},
            "objective.schedule",
            "non_autoregressive or block_diffusion",
            "autoregressive",
        ),
        (
            {**AR, "objective.mask_prob": 0.1, "objective.num_classes": 3},
            "objective.num_classes",
            "block_diffusion",
            "",
        ),
        (
            {**BLOCKS, "objective.self_conditioning": True},
            "objective.self_conditioning",
            "non_autoregressive",
            "block_diffusion",
        ),
        (
            {**BLOCKS, "objective.self_token_critic": True},
            "objective.self_token_critic",
            "non_autoregressive",
            "block_diffusion",
        ),
        ({"optimizer.muon_momentum": 0.9}, "optimizer.muon_momentum", "muon", "adamw"),
        (
            {"optimizer.kind": "lion", "optimizer.muon_learning_rate": 0.1},
            "optimizer.muon_learning_rate",
            "muon",
            "lion",
        ),
    ],
)
def test_a_key_of_another_kind_is_named_with_the_kinds_that_have_it(changes, key, owners, kind):
    with refused(ConfigError, key, owners, *([kind] if kind else [])):
        config_with(**changes)


@pytest.mark.parametrize(
    ("changes", "unknown", "nearest", "kind"),
    [
        ({"optimizer.muon_momentun": 0.9}, "optimizer.muon_momentun", "optimizer.muon_momentum", "muon"),
        ({"objective.blok_size": 4}, "objective.blok_size", "objective.block_size", "block_diffusion"),
        ({**AR, "objective.mask_probs": 0.1}, "objective.mask_probs", "objective.mask_prob", None),
        ({"schedule.warmup": 1}, "schedule.warmup", "schedule.warmup_steps", None),
        ({"schedule.kid": "wsd"}, "schedule.kid", "schedule.kind", None),
    ],
)
def test_the_nearest_key_is_named_with_its_kind_if_that_is_another(changes, unknown, nearest, kind):
    with refused(ConfigError, f"'{unknown}'", f"'{nearest}'", *([f"kind {kind}"] if kind else [])):
        config_with(**changes)


@pytest.mark.parametrize(
    ("section", "kinds"),
    [
        ("objective", ["'autoregressive'", "'non_autoregressive'", "'block_diffusion'", "'hybrid'"]),
        ("optimizer", ["'adamw'", "'lion'", "'muon'"]),
        ("schedule", ["'cosine'", "'wsd'", "'constant'", "'inverse_sqrt'"]),
    ],
)
@pytest.mark.parametrize("kind", ["sgd", None, ["adamw"], 3])
def test_a_kind_that_is_not_there_is_named_with_those_that_are(section, kinds, kind):
    with refused(ConfigError, f"{section}.kind", *kinds, repr(kind)):
        config_with(**{f"{section}.kind": kind})


def test_values_of_a_kind_are_checked_and_named_without_it():
    with refused(
        ConfigError, "optimizer.muon_momentum", 1.0, "schedule.decay_fraction", 0.0, "objective.mask_prob", 1.5
    ):
        config_with(
            **AR,
            **{"objective.mask_prob": 1.5, "optimizer.kind": "muon", "optimizer.muon_momentum": 1.0},
            **{"schedule.kind": "wsd", "schedule.decay_fraction": 0.0},
        )


def test_a_hybrid_needs_blocks_and_something_to_learn():
    with refused(ConfigError, "objective.block_size", "missing"):
        config_with(**{"objective.kind": "hybrid"})
    with refused(ConfigError, "objective.block_size", 2, 1):
        config_with(**{**HYBRID, "objective.block_size": 1})
    with refused(ConfigError, "autoregressive_weight", "diffusion_weight"):
        config_with(**HYBRID, **{"objective.autoregressive_weight": 0.0, "objective.diffusion_weight": 0.0})


def test_masks_whose_weights_have_no_bound_are_refused():
    changes = {"objective.training_schedule": "bell", "objective.masking": "bernoulli"}
    with refused(ConfigError, "training_schedule", "bell", "bernoulli", "exact", "unweighted"):
        config_with(**changes)
    assert config_with(**changes, **{"objective.loss": "unweighted"}).objective.training_schedule == "bell"


def test_what_every_objective_is_asked_for_it_answers():
    hybrid = config_with(**HYBRID).objective
    assert (hybrid.num_classes, hybrid.prefix_length, hybrid.schedule) == (None, 0, "linear")
    objective = config_with(**AR).objective
    assert (objective.num_classes, objective.prefix_length, objective.schedule) == (None, 0, None)
    assert set(objective.model_dump()) == {"kind", "mask_prob", "attention_z_loss"}


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        ({"schedule.kind": "constant", "schedule.final_factor": 0.02}, ("schedule", "final_factor")),
        ({"schedule.kind": "inverse_sqrt", "schedule.decay_fraction": 0.5}, ("schedule", "decay_fraction")),
        ({"optimizer.kind": "lion", "optimizer.eps": 1e-6}, ("optimizer", "eps")),
        ({"optimizer.muon_momentum": 0.95}, ("optimizer", "muon_momentum")),
        ({**AR, "objective.steps": 18}, ("objective", "steps")),
    ],
)
def test_what_has_never_been_refused_is_not(changes, dropped):
    section, key = dropped
    assert key not in config_with(**changes).model_dump()[section]


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_saved_config_means_what_it_meant(path, tmp_path):
    config = load_config(path)
    check_run(config)
    saved, loaded = yaml.safe_load(path.read_text()), config.model_dump(mode="json")
    kinds = {"objective": 18, "optimizer": 8, "schedule": 4}
    if config.objective.kind != "autoregressive":  # they had no part in it
        decoding = {"steps": saved["objective"]["steps"], "guidance": saved["objective"]["guidance_scale"]}
        assert decoding.items() <= config.sampler().model_dump().items()
    assert config.decoding.sampler == "auto"
    del loaded["decoding"]
    later = {("model", "embedding_std"): 0.02, ("model", "qk_bias"): False, ("checkpoint", "license"): None}
    assert {key: loaded[key[0]].pop(key[1]) for key in later} == later  # keys that there were not yet
    assert loaded["objective"].pop("training_schedule", None) is None
    for section, keys in kinds.items():
        own = type(getattr(config, section)).model_fields
        assert len(saved[section]) == keys >= len(own)
        saved[section] = {name: value for name, value in saved[section].items() if name in own}
    if "loss" in saved["objective"]:  # which had other names
        saved["objective"]["loss"] = {"mdlm": "weighted", "maskgit": "unweighted"}[saved["objective"]["loss"]]
    assert loaded == saved
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(("former", "name"), [("mdlm", "weighted"), ("maskgit", "unweighted")])
def test_former_names_of_the_losses_are_read(former, name):
    assert config_with(**{"objective.loss": former}).objective.loss == name


@pytest.mark.parametrize("loss", ["other", 3, ["mdlm"]])
def test_losses_that_do_not_exist_are_refused(loss):
    with refused(ConfigError, "objective", "loss", "weighted", "unweighted"):
        config_with(**{"objective.loss": loss})


def test_the_saved_configs_are_of_all_kinds():
    configs = [load_config(path) for path in SAVED.glob("*.yaml")]
    assert {config.objective.kind for config in configs} == {"autoregressive", "non_autoregressive", "block_diffusion"}
    assert {config.optimizer.kind for config in configs} == {"adamw", "lion", "muon"}
    assert {config.schedule.kind for config in configs} == {"cosine", "wsd", "constant", "inverse_sqrt"}


def test_what_the_first_checkpoints_say_of_recomputation_is_read():
    kinds = [config_with(**{"model.activation_checkpointing": value}).model for value in (False, True)]
    assert [model.activation_checkpointing for model in kinds] == ["none", "full"]


def test_an_override_chooses_another_kind_than_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(dump_config(config_with(**{"optimizer.kind": "adamw", "optimizer.eps": 1e-6})))
    config = load_config(path, ["optimizer.kind=muon", "optimizer.muon_momentum=0.9", "schedule.kind=wsd"])
    assert isinstance(config.optimizer, MuonConfig)
    assert (config.optimizer.eps, config.optimizer.muon_momentum, config.schedule.kind) == (1e-6, 0.9, "wsd")
