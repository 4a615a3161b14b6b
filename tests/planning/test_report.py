"""What a dry run says, against arithmetic by hand, a forward pass, and what is on the disk afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nar_scale.commands.process import exit_status as command
from nar_scale.commands.train import main as launch
from nar_scale.config import load_config, resolve_deepspeed_config, validate_config
from nar_scale.data import Batch, DatasetInfo
from nar_scale.data.shards.dataset_info import SplitInfo
from nar_scale.errors import ConfigError, DataError
from nar_scale.objectives import build_wrapper
from nar_scale.planning.memory_estimate import estimate_memory
from nar_scale.planning.report import describe_run
from nar_scale.training.engine.muon_layout import muon_matrices
from tests.config.helpers import VALUES, config_with
from tests.errors import assert_names

TRAIN = Path(__file__).parents[2] / "launcher" / "train.py"
MIB = 2**20


@pytest.fixture
def prepared(tmp_path):
    """All that a dry run wants to know of a data set."""
    for name, samples in (("some", 40), ("others", 120)):
        (tmp_path / name).mkdir()
        split = SplitInfo(documents=1, samples=samples, tokens=samples * 12, bytes=0, shards=1)
        DatasetInfo("byte", 257, 256, 12, "tokens.npy", {"train": split}, {}).save(tmp_path / name)
    return tmp_path


def section(text, title):
    """The lines between a comment and the next one."""
    return text.split(f"# {title}", 1)[1].split("\n", 1)[1].split("\n#", 1)[0]


def line(text, start):
    """The line of the summary before the configurations."""
    return next(line for line in text.split("\n# resolved", 1)[0].splitlines() if line.startswith(start))


def test_a_dry_run_of_the_launcher_writes_nothing(prepared):
    config = prepared / "small.yaml"
    config.write_text(yaml.safe_dump({**VALUES, "data": {"directory": str(prepared / "some")}}))
    before = sorted(prepared.rglob("*"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [sys.executable, "-X", "importtime", str(TRAIN), "--config", str(config), "--dry-run", "--verbose"]
    result = subprocess.run(
        [*command, "training.zero_stage=3"],
        capture_output=True,
        text=True,
        cwd=prepared,
        env={**environment, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    )
    assert result.returncode == 0, result.stderr
    assert sorted(prepared.rglob("*")) == before
    assert " deepspeed\n" not in result.stderr
    resolved = load_config(config, ["training.zero_stage=3"])
    shown = yaml.safe_load(section(result.stdout, "resolved configuration"))
    assert validate_config(shown, "shown") == resolved
    assert result.stdout.startswith("model: ")
    deepspeed = section(result.stdout, "DeepSpeed configuration for 2 rank(s)")
    assert json.loads(deepspeed) == resolve_deepspeed_config(resolved, 2)


def test_a_dry_run_shows_all_settings_only_if_asked(prepared, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    config = prepared / "small.yaml"
    config.write_text(yaml.safe_dump({**VALUES, "data": {"directory": str(prepared / "some")}}))
    assert launch(["--config", str(config), "--dry-run"]) == 0
    short = capsys.readouterr().out
    assert launch(["--config", str(config), "--dry-run", "--verbose"]) == 0
    assert capsys.readouterr().out.startswith(short.rstrip("\n"))
    assert "# resolved configuration" not in short
    assert "memory of a rank" in short


def test_sizes_are_those_of_the_model_and_the_data(prepared):
    sources = {name: {"directory": str(prepared / name)} for name in ("some", "others")}
    config = config_with(
        **{
            "data": {"sources": sources},
            "training.steps": None,
            "training.samples": 320,
            "training.batch_size_warmup": [
                {"from_step": 0, "global_batch_size": 4},
                {"from_step": 2, "global_batch_size": 8},
            ],
        }
    )
    text = describe_run(config, 2)
    net = build_wrapper(config, 257).net
    total = sum(weight.numel() for weight in net.parameters())
    assert line(text, "model:").endswith(
        f"{total:,} parameters: {258 * 16:,} in embeddings, {total - 258 * 16:,} elsewhere"
    )
    assert "from step 0 4 sequences = 2 rank(s) x 1 micro-batch(es) of 2, 48 tokens a step" in line(text, "batch:")
    assert "from step 2 8 sequences = 2 rank(s) x 2 micro-batch(es) of 2, 96 tokens a step" in line(text, "batch:")
    # 2 steps of 4 and 39 of 8; 6 FLOPs a weight of a matrix product and token, and attention's
    flops = 320 * 12 * (6 * (total - 258 * 16) + 12 * 2 * 16 * 12)
    assert line(text, "length:").endswith(f"41 steps, 320 sequences, 3,840 tokens, {flops:.4g} FLOPs")
    assert line(text, "data:").endswith("some: 40 sequences, 2 epochs; others: 120 sequences, 2 epochs")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "a.yaml", "--training.steps=5"], "unrecognized arguments: --training.steps=5"),
        (
            ["--config", "a.yaml", "--ranks", "2"],
            "--ranks starts processes, but a launcher has started this one already",
        ),
        (["--config", "a.yaml", "--dry-run", "--resume", "never"], "--dry-run does not look at checkpoints to resume"),
        (["--config", "absent.yaml", "--dry-run"], "cannot read the config file absent.yaml"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_told_in_one_line(arguments, problem, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(sys, "argv", [str(TRAIN)])
    assert command(lambda: launch(arguments), ranks=True) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"train: error: {problem}")
    assert told.err.count("\n") == 1


def test_of_many_ranks_one_does_the_dry_run(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch(["--config", "absent.yaml", "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_no_run_may_start_with_is_refused(prepared, capsys):
    config = prepared / "small.yaml"
    config.write_text(yaml.safe_dump({**VALUES, "data": {"directory": str(prepared / "some"), "validation": ""}}))
    assert launch(["--config", str(config), "--dry-run", "logging.evaluate_every=2"]) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "logging.evaluate_every", "data.validation")


def test_a_tokenizer_that_is_not_there_is_named(prepared):
    config = config_with(**{"data.directory": str(prepared / "some"), "data.tokenizer": "/nowhere/tokenizer.json"})
    with pytest.raises(ConfigError, match=r"data.tokenizer /nowhere/tokenizer.json is no file; give a tokenizer.json"):
        describe_run(config, 1)


def test_without_data_a_vocabulary_is_enough_but_needed(tmp_path):
    config = config_with(**{"data.directory": str(tmp_path / "absent"), "data.vocabulary_size": 50})
    assert "number of epochs is not known" in describe_run(config, 1)
    with pytest.raises(DataError, match="absent does not exist"):
        describe_run(config_with(**{"data.directory": str(tmp_path / "absent")}), 1)
    with pytest.raises(ConfigError, match="vocabulary_size is needed"):
        describe_run(config_with(**{"data.directory": str(tmp_path)}), 1)
    with pytest.raises(ConfigError, match="does not divide"):
        describe_run(config, 3)


def memory(ranks=1, **changes):
    """Bytes by part and place, and the number of parameters."""
    config = config_with(**changes)
    with torch.device("meta"):
        wrapper = build_wrapper(config, 257)
    parts = estimate_memory(wrapper, config, resolve_deepspeed_config(config, ranks), ranks)
    return {part.name: (part.size, part.location) for part in parts}, sum(p.numel() for p in wrapper.parameters())


# bytes for each parameter of weights, gradients, master weights, moments and average, on 4 ranks
BYTES = {
    (0, "fp32"): (4, 4, 0, 8, 4),
    (1, "fp32"): (4, 4, 1, 2, 1),
    (2, "fp32"): (4, 1, 1, 2, 1),
    (3, "fp32"): (1, 1, 1, 2, 1),
    (0, "bf16"): (2, 2, 4, 8, 4),
    (1, "bf16"): (2, 2, 1, 2, 1),
    (2, "bf16"): (2, 1, 1, 2, 1),
    (3, "bf16"): (0.5, 1, 1, 2, 1),
}


@pytest.mark.parametrize(("stage", "precision"), BYTES)
def test_bytes_of_a_parameter(stage, precision):
    settings = {"training.zero_stage": stage, "training.precision": precision, "training.ema_decay": 0.9}
    parts, parameters = memory(4, **settings)
    names = ("weights", "gradients", "master weights", "moments", "moving average")
    assert tuple(parts.get(name, (0, ""))[0] / parameters for name in names) == BYTES[stage, precision]
    assert {place for _, place in parts.values()} == {"device"}


@pytest.mark.parametrize(("stage", "ranks", "buckets"), [(0, 4, 0), (1, 4, 2), (2, 4, 2), (2, 1, 1), (3, 4, 1)])
def test_gradients_are_reduced_in_buckets(stage, ranks, buckets):
    parts, parameters = memory(ranks, **{"training.zero_stage": stage})
    assert parts.get("gradient buckets", (0, "device")) == (buckets * 2 * parameters, "device")
    capped = {"training.zero_stage": stage, "deepspeed.zero_optimization.reduce_bucket_size": 100}
    assert memory(ranks, **capped)[0].get("gradient buckets", (0, ""))[0] == buckets * 2 * 100


def test_offload_bf16_masters_and_other_optimizers():
    stage_1 = {"training.zero_stage": 1, "deepspeed.data_types.grad_accum_dtype": "fp32"}
    parts, parameters = memory(2, **stage_1)
    assert parts["gradients"] == ((2 + 4) * parameters, "device")
    parts, parameters = memory(
        2, **{"training.zero_stage": 3, "zero.offload_optimizer": "cpu", "zero.offload_parameters": "cpu"}
    )
    for name, size in (("weights", 1), ("gradients", 2), ("master weights", 2), ("moments", 4)):
        assert parts[name] == (size * parameters, "cpu")
    parts, parameters = memory(2, **{"training.master_weights": "bf16"})
    for name, size in (("gradients", 1), ("master weights", 1), ("moments", 2)):
        assert parts[name] == (size * parameters, "device")
    assert memory(**{"optimizer.kind": "lion"})[0]["moments"][0] == 4 * parameters
    matrices = sum(weight.numel() for weight in muon_matrices(build_wrapper(config_with(), 257)).values())
    assert memory(**{"optimizer.kind": "muon"})[0]["moments"][0] == pytest.approx(8 * parameters - 4 * matrices)


@pytest.mark.parametrize("kind", ["autoregressive", "non_autoregressive", "block_diffusion", "hybrid"])
@pytest.mark.parametrize("feedforward", ["gelu", "swiglu"])
def test_activations_are_about_what_a_forward_pass_keeps(kind, feedforward):
    changes = {
        "model": {"dim": 64, "depth": 4, "heads": 4, "max_seq_len": 64, "feedforward": feedforward},
        "objective.kind": kind,
        **({"objective.block_size": 16} if kind == "hybrid" else {}),
        "training.micro_batch_size": 8,
        "training.precision": "fp32",
    }
    parts, _ = memory(**changes)
    wrapper = build_wrapper(config_with(**changes), 257)
    weights = {weight.untyped_storage().data_ptr() for weight in wrapper.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.arange(8)
    batch = Batch(torch.randint(257, (8, 64)), torch.full((8,), 64), ids, torch.zeros_like(ids), ids)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = wrapper.loss_terms(batch, seed=0).total()
    assert loss.requires_grad
    measured = sum(storage.nbytes() for storage in kept.values())
    assert parts["activations"][0] + parts["logits"][0] == pytest.approx(measured, rel=0.1)


def test_recomputation_keeps_less():
    sizes = [
        memory(**{"model.activation_checkpointing": how, "model.depth": 12})[0]["activations"][0]
        for how in ("none", "selective", "full")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 4
