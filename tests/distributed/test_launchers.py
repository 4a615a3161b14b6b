"""The same script under every launcher, what a user sees of it, and its answers to bad input."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from nar_scale.data import prepare

from . import jobs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return jobs.write_config(tmp_path_factory.mktemp("launchers") / "small.yaml", corpus)


def alone(config: Path | str, *arguments: str) -> list[str]:
    return [sys.executable, str(jobs.TRAIN), "--config", str(config), *arguments]


def test_python_torchrun_and_deepspeed_agree(config: Path, tmp_path: Path) -> None:
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--master-port"]
    commands = {
        "python": alone(config),
        "torchrun": [*torchrun, str(jobs.free_port()), str(jobs.TRAIN), "--config", str(config)],
        "deepspeed": jobs.deepspeed_command(2, jobs.TRAIN, "--config", str(config)),
    }
    for name, command in commands.items():
        jobs.run([*command, f"training.run_directory={tmp_path / name}"])
    expected = jobs.losses(tmp_path / "python")
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    for name in commands:
        assert jobs.losses(tmp_path / name) == pytest.approx(expected, rel=1e-5)


def test_the_terminal_belongs_to_the_user(config: Path, tmp_path: Path) -> None:
    command = jobs.deepspeed_command(2, jobs.TRAIN, "--config", str(config))
    lines = jobs.run([*command, f"training.run_directory={tmp_path}"]).splitlines()
    assert len(lines) <= 8, "\n".join(lines)
    assert any(line.startswith("step 6/6, loss ") for line in lines)
    verbose = jobs.run([*command, f"training.run_directory={tmp_path / 'verbose'}", "--verbose"]).splitlines()
    assert len(verbose) > len(lines)


def test_the_run_directory_holds_what_was_resolved(config: Path, tmp_path: Path) -> None:
    jobs.run(alone(config, f"training.run_directory={tmp_path}", "deepspeed.zero_optimization.reduce_bucket_size=1000"))
    assert "reduce_bucket_size: 1000" in (tmp_path / "config.yaml").read_text()
    assert '"reduce_bucket_size": 1000' in (tmp_path / "deepspeed.json").read_text()
    assert list((tmp_path / "tensorboard").iterdir())
    line = jobs.metrics(tmp_path)[6]
    named = {"loss", "gradient_norm", "learning_rate", "tokens_per_second", "data_wait_fraction", "memory_gib"}
    assert named <= set(line)
    assert any(name.startswith("masked_") for name in line)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.stesp=3"], "unknown key 'training.stesp', did you mean 'training.steps'?"),
        (["training.steps=many"], "training.steps: input should be a valid integer, got 'many'"),
        (["steps=3"], "override 'steps=3' is not of the form section.key=value"),
        (["training.micro_batch_size=3"], "does not divide into micro-batches of 3 on 1 rank(s); use 6 or 9"),
        (["data.directory=nowhere"], "data.directory nowhere does not exist"),
        (["data.train=train/missing-*.tar"], "missing-*.tar"),
        (["data.vocabulary_size=100"], "outside the vocabulary"),
        (["model.max_seq_len=16"], "longer than"),
        (["training.precision=fp16"], "needs a GPU"),
        (["training.run_directory=/proc/run"], "checkpoints to /proc/run/checkpoints"),
        (["--resume", "nowhere/step-000000001"], "no checkpoint there"),
    ],
)
def test_bad_input_is_answered_in_one_line(config: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    output = jobs.run([*alone(config, f"training.run_directory={tmp_path}"), *overrides], status=2)
    errors = [line for line in output.splitlines() if "error" in line]
    assert len(errors) == 1, output
    assert message in errors[0]
    assert "Traceback" not in output


def test_missing_config(tmp_path: Path) -> None:
    output = jobs.run(alone(tmp_path / "missing.yaml"), status=2)
    assert output.splitlines() == [
        f"train: error: cannot read the config file {tmp_path / 'missing.yaml'}: No such file or directory"
    ]


def test_truncated_shard_is_named_once_by_two_ranks(config: Path, corpus: Path, tmp_path: Path) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(corpus, broken, ignore=shutil.ignore_patterns("*.index"))
    shard = sorted((broken / "train").glob("*.tar"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    command = jobs.deepspeed_command(2, jobs.TRAIN, "--config", str(config))
    output = jobs.run([*command, f"data.directory={broken}", f"training.run_directory={tmp_path / 'run'}"], status=2)
    named = [line for line in output.splitlines() if shard.name in line]
    assert len(named) == 1, output
    assert "truncated" in named[0]
    assert "Traceback" not in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_without_write_permission(config: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    output = jobs.run(alone(config, f"training.run_directory={tmp_path}"), status=2)
    assert "no permission to write checkpoints" in output


def test_fewer_shards_than_ranks_and_a_short_last_sample(tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_bytes(b"a few words, and not many of them. " * 10)
    prepare([document], tmp_path / "shards", seq_len=jobs.SEQUENCE_LENGTH, validation=0.0, progress=False)
    config = jobs.write_config(tmp_path / "tiny.yaml", tmp_path / "shards", data={"validation": ""})
    for kind in ("autoregressive", "non_autoregressive"):
        run_directory = tmp_path / kind
        command = jobs.deepspeed_command(2, jobs.TRAIN, "--config", str(config), f"objective.kind={kind}")
        jobs.run([*command, f"training.run_directory={run_directory}"])
        assert jobs.losses(run_directory)[6] < jobs.losses(run_directory)[1]
