"""The same script under every launcher, what a user sees of it, and its answers to bad input."""

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

from nar_scale.checkpoint import CheckpointStore
from nar_scale.data import prepare
from nar_scale.processes import RESUMABLE_EXIT_STATUS
from tests.errors import assert_names

from . import jobs


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return jobs.write_config(tmp_path_factory.mktemp("launchers") / "small.yaml", corpus)


class Runs:
    """The same run under three launchers."""

    def __init__(self, directory: Path, config: Path):
        self.directory = directory
        torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--master-port"]
        arguments = ["--config", str(config), "deepspeed.zero_optimization.reduce_bucket_size=1000"]
        commands = {
            "python": [sys.executable, str(jobs.TRAIN), *arguments],
            "torchrun": [*torchrun, str(jobs.free_port()), str(jobs.TRAIN), *arguments, "--verbose"],
            "deepspeed": jobs.deepspeed_command(2, jobs.TRAIN, *arguments),
        }
        self.outputs = {
            name: jobs.run([*command, f"training.run_directory={directory / name}"]).splitlines()
            for name, command in commands.items()
        }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), config)


def test_python_torchrun_and_deepspeed_agree(runs: Runs) -> None:
    expected = jobs.losses(runs.directory / "python")
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    for name in runs.outputs:
        assert jobs.losses(runs.directory / name) == pytest.approx(expected, rel=1e-5)


def test_the_terminal_belongs_to_the_user(runs: Runs) -> None:
    lines = runs.outputs["deepspeed"]
    assert len(lines) <= 16, "\n".join(lines)
    assert max(map(len, lines)) <= 120, "\n".join(lines)
    assert any(line.startswith("step 6/6, loss ") for line in lines)


def test_the_run_begins_with_a_table(runs: Runs) -> None:
    for name, ranks in (("python", 1), ("torchrun", 2), ("deepspeed", 2)):
        lines = [line for line in runs.outputs[name] if line[:1].isalpha()]
        first = next(number for number, line in enumerate(lines) if line.startswith("start "))
        rows = {line.split()[0]: line for line in lines[first : first + 8]}
        assert list(rows) == ["start", "model", "data", "batch", "length", "device", "run", "settings"]
        assert_names(rows["start"], "training 6 steps", "new weights")
        assert_names(rows["model"], "non-autoregressive", "2 blocks", "32 wide")
        assert_names(rows["batch"], "8 sequences", "256 tokens", f"{ranks} rank{'s' * (ranks > 1)}", "of 2 x 32 tokens")
        assert_names(rows["length"], "6 steps", "48 sequences", "1,536 tokens", "epochs")
        assert_names(rows["device"], f"{ranks} x CPU", "fp32", "ZeRO 2")
        assert_names(rows["settings"], "optimizer.learning_rate=0.003")
        assert "training.steps" not in rows["settings"]


def test_the_run_directory_holds_what_was_resolved(runs: Runs) -> None:
    directory = runs.directory / "python"
    assert "reduce_bucket_size: 1000" in (directory / "config.yaml").read_text()
    assert '"reduce_bucket_size": 1000' in (directory / "deepspeed.json").read_text()
    assert list((directory / "tensorboard").iterdir())
    line = jobs.metrics(directory)[6]
    named = {"loss", "gradient_norm", "learning_rate", "tokens_per_second", "data_wait_fraction", "memory_gib"}
    assert named <= set(line)
    assert any(name.startswith("masked_") for name in line)


def test_an_error_before_the_ranks_connect_is_told_though_another_rank_ends_first(config: Path, tmp_path: Path) -> None:
    """Torchrun kills all ranks as soon as one has ended, and the rank that is to tell the error comes late."""
    late = 'import os, time; time.sleep(3 * (os.environ.get("LOCAL_RANK") == "0"))'
    (tmp_path / "sitecustomize.py").write_text(late)
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--master-port"]
    command = ["env", f"PYTHONPATH={tmp_path}{os.pathsep}{jobs.REPOSITORY}", *torchrun, str(jobs.free_port())]
    for arguments, named in (["training.stesp=3"], "training.stesp"), (["--no-such-option"], "--no-such-option"):
        output = jobs.run([*command, str(jobs.TRAIN), "--config", str(config), *arguments], status=1)
        assert len([line for line in output.splitlines() if named in line]) == 1, output


def test_a_port_that_is_taken_is_named(config: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        ranks = ["RANK=0", "LOCAL_RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}"]
        run = f"training.run_directory={tmp_path / 'run'}"
        output = jobs.run(["env", *ranks, sys.executable, str(jobs.TRAIN), "--config", str(config), run], status=2)
    assert_names(output.removesuffix("\n"), port, "--master_port")
    assert not (tmp_path / "run").exists()


def test_truncated_shard_is_named_once_by_two_ranks(config: Path, corpus: Path, tmp_path: Path) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(corpus, broken, ignore=shutil.ignore_patterns("*.index"))
    shard = sorted((broken / "train").glob("*.tar"))[0]
    os.truncate(shard, shard.stat().st_size // 2)
    command = jobs.forked_command(2, jobs.TRAIN, "--config", str(config))
    output = jobs.run([*command, f"data.directory={broken}", f"training.run_directory={tmp_path / 'run'}"], status=2)
    named = [line for line in output.splitlines() if shard.name in line]
    assert len(named) == 1, output
    assert "truncated" in named[0]
    assert "Traceback" not in output


def test_fewer_shards_than_ranks_and_a_short_last_sample(tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_bytes(b"a few words, and not many of them. " * 10)
    shards = tmp_path / "shards"
    prepare([document], shards, seq_len=jobs.SEQUENCE_LENGTH, validation=0.0, progress=False)
    config = jobs.write_config(tmp_path / "tiny.yaml", shards)
    kinds = ("autoregressive", "non_autoregressive")
    cases = [(config, [f"objective.kind={kind}", f"training.run_directory={tmp_path / kind}"]) for kind in kinds]
    jobs.train_in_one_launch(tmp_path, *cases)
    for kind in kinds:
        losses = jobs.losses(tmp_path / kind)
        assert losses[6] < losses[1]


def test_ranks_that_the_command_has_started_stop_when_it_is_asked_to(config: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("nar-scale")), "train", "--ranks", "2", "--config", str(config)]
    overrides = [f"training.run_directory={tmp_path / 'run'}", "training.steps=5000", "checkpoint.every=5000"]
    process = jobs.start([*command, *overrides])
    jobs.wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGTERM)  # to the command alone, as `docker stop` does; nor does Ctrl-C reach others
    output, _ = process.communicate(timeout=120)
    assert process.returncode == RESUMABLE_EXIT_STATUS, output
    assert "stopped as asked" in output
    assert "Traceback" not in output
    reached = max(jobs.losses(tmp_path / "run"))
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps() == [reached]
