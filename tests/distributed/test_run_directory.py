"""A run directory belongs to one run at a time, and keeps the record of what was trained whatever befalls it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from nar_scale.checkpoint import CheckpointStore
from nar_scale.config import load_config

from . import jobs

LONG = ["training.steps=100000", "checkpoint.every=20", "logging.evaluate_every=20", "logging.evaluation_samples=8"]


def make_directory(path: Path) -> None:
    """Put a directory in the place of a file."""
    path.unlink()
    path.mkdir()
    (path / "something").touch()


LOST = b'\xff\xfe\n{"step": 2, "loss": 1.0}\n3\n{"loss": 1.0}\n{"step": "x"}\n'
ALL = set(range(1, 9))
DAMAGE = (  # a file, what is done to it, and the steps in metrics.jsonl afterwards
    ("checkpoints/latest", lambda path: path.write_bytes(b"\xff\xfe\x00"), ALL),
    ("checkpoints/latest", lambda path: path.write_bytes(b""), ALL),
    ("checkpoints/latest", make_directory, ALL),
    ("metrics.jsonl", lambda path: path.write_bytes(LOST), {2, 7, 8}),
    ("metrics.jsonl", make_directory, {7, 8}),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    path = tmp_path_factory.mktemp("run_directory") / "small.yaml"
    return jobs.write_config(path, corpus, schedule={"kind": "constant"}, checkpoint={"every": 2, "keep_last": 9})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The directory of a run of 6 steps, to be copied."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    overrides = [f"training.run_directory={directory}", "checkpoint.consolidate_every=6"]
    before = os.umask(0o022)
    try:
        ((status, output),) = jobs.run_forked(directory.parent, (config, overrides, "auto"))
    finally:
        os.umask(before)
    assert status == 0, output
    return directory


class Starts(jobs.Outcomes):
    """Runs that are started in copies of the directory of a finished one, or in new ones, all in one process.

    Each has a name; those of the same directory follow each other.
    """

    def __init__(self, directory: Path, finished: Path, config: Path, corpus: Path):
        self.directory = directory
        for name in ("settings", "moved", "more", "config.yaml", "deepspeed.json", *map(str, range(len(DAMAGE)))):
            shutil.copytree(finished, directory / name)
        self.before = files_in(directory / "settings")
        make_directory(directory / "config.yaml" / "config.yaml")
        make_directory(directory / "deepspeed.json" / "deepspeed.json")
        for number, (file, damage, _) in enumerate(DAMAGE):
            damage(directory / str(number) / file)
        (directory / "existing").mkdir()
        shutil.rmtree(directory / "moved" / "checkpoints" / "step-000000006")
        scratch = directory / "scratch"
        shutil.copytree(corpus, scratch / "directory", ignore=shutil.ignore_patterns("*.index"))
        elsewhere = [
            *(f"data.{name}={scratch / name}" for name in ("directory", "index_directory", "cache_directory")),
            *("data.loader_workers=1", "data.prefetch=3", "data.memory_map=false", "training.micro_batch_size=4"),
            *("training.zero_stage=1", "zero.offload_optimizer=cpu", "model.activation_checkpointing=full"),
        ]
        go_on = ["training.steps=8", "checkpoint.consolidate_every=0"]
        step_4 = str(directory / "settings" / "checkpoints" / "step-000000004")
        cases = {
            "rate": ("settings", ["optimizer.learning_rate=0.1"], "auto"),
            "fewer": ("settings", ["training.steps=3"], "auto"),
            "both": ("settings", ["training.steps=4", "optimizer.kind=lion"], step_4),
            "same": ("settings", [], "auto"),
            "reported": ("settings", ["logging.every=2"], "auto"),
            "elsewhere": ("settings", elsewhere, "auto"),
            "moved": ("moved", elsewhere, "auto"),
            "more": ("more", [*go_on, "optimizer.learning_rate=0.1"], "auto"),
            "config.yaml": ("config.yaml", go_on, "auto"),
            "deepspeed.json": ("deepspeed.json", go_on, "auto"),
            "no data": ("runs/made", ["data.directory=nowhere"], "auto"),
            "no data, existing": ("existing", ["data.directory=nowhere"], "auto"),
            "no checkpoint": ("runs/made", [], "nowhere/step-000000001"),
            **{str(number): (str(number), go_on, "auto") for number in range(len(DAMAGE))},
        }
        results = jobs.run_forked(
            directory,
            *((config, [f"training.run_directory={directory / d}", *rest], how) for d, rest, how in cases.values()),
        )
        super().__init__(dict(zip(cases, results, strict=True)))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory, finished: Path, config: Path, corpus: Path) -> Starts:
    return Starts(tmp_path_factory.mktemp("starts"), finished, config, corpus)


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "tensorboard" not in path.parts
    }


class TestTwoRuns:
    def start(self, config: Path, directory: Path, environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
        arguments = ["--config", str(config), *LONG, f"training.run_directory={directory}"]
        return subprocess.Popen(
            [sys.executable, str(jobs.TRAIN), *arguments],
            cwd=jobs.REPOSITORY,
            env={**jobs.environment(), **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def test_the_second_is_refused_and_a_later_one_goes_on(self, config: Path, tmp_path: Path) -> None:
        first = self.start(config, tmp_path)
        try:
            jobs.wait_for_step(first, tmp_path, 21)
            second = self.start(config, tmp_path)
            output, _ = second.communicate(timeout=120)
            error = jobs.Outcomes({"second": (second.returncode, output)}).error("second")
            assert f"{tmp_path} is in use by process {first.pid} on" in error
            assert first.poll() is None
        finally:
            jobs.kill(first)
        steps = sorted(jobs.losses(tmp_path))
        assert steps == list(range(1, len(steps) + 1))

        # at once, though nobody has given the lease back; and on a terminal that has no plus-minus sign
        third = self.start(config, tmp_path, {"PYTHONIOENCODING": "ascii"})
        try:
            jobs.wait_for_step(third, tmp_path, steps[-1] // 20 * 20 + 21)
            third.send_signal(signal.SIGTERM)
            output, _ = third.communicate(timeout=120)
        finally:
            jobs.kill(third)
        assert "resuming at step" in output
        assert "waiting up to" not in output
        assert "Logging error" not in output
        assert "validation: " in output
        assert not list(tmp_path.glob("lease*"))

    def test_a_requeued_attempt_takes_over(self, config: Path, tmp_path: Path) -> None:
        first = self.start(config, tmp_path, {"SLURM_JOB_ID": "88"})
        second = None
        try:
            jobs.wait_for_step(first, tmp_path, 21)
            second = self.start(config, tmp_path, {"SLURM_JOB_ID": "88", "SLURM_RESTART_COUNT": "1"})
            output, _ = first.communicate(timeout=120)
            error = jobs.Outcomes({"first": (first.returncode, output)}).error("first")
            assert f"taken over by process {second.pid} on" in error
            jobs.wait_for_step(second, tmp_path, max(jobs.losses(tmp_path)) + 1)
        finally:
            for process in (first, second):
                if process is not None:
                    jobs.kill(process)
        steps = sorted(jobs.losses(tmp_path))
        assert steps == list(range(1, len(steps) + 1))


def test_a_finished_run_is_not_started_with_other_settings(starts: Starts) -> None:
    error = starts.error("rate")
    assert "step-000000006" in error
    assert "optimizer.learning_rate 0.003, not 0.1" in error
    assert "set it back" in error
    assert "training.steps beyond step 6" in error
    assert "training.run_directory" in error
    assert "training.steps 6, not 3" in starts.error("fewer")
    assert "optimizer.kind adamw, not lion" in starts.error("both")
    for name in ("same", "reported", "elsewhere"):
        assert "nothing was left to train" in starts.output(name)
    assert files_in(starts.directory / "settings") == starts.before


def test_settings_of_earlier_steps_are_kept(starts: Starts) -> None:
    starts.output("more")
    run = starts.directory / "more"
    assert max(jobs.losses(run)) == 8
    (earlier,) = run.glob("config-until-*.yaml")
    assert earlier.name == "config-until-step-000000006.yaml"
    assert load_config(earlier).optimizer.learning_rate == 0.003
    assert load_config(run / "config.yaml").optimizer.learning_rate == 0.1


def test_a_run_that_goes_on_elsewhere_has_learned_with_the_same_settings(starts: Starts) -> None:
    assert "resuming at step 4 of 6" in starts.output("moved")
    run = starts.directory / "moved"
    assert not list(run.glob("config-until-*.yaml"))
    assert load_config(run / "config.yaml").data.directory == str(starts.directory / "scratch" / "directory")


def test_a_damaged_run_directory_goes_on_from_its_checkpoints(starts: Starts) -> None:
    for number, (name, _, steps) in enumerate(DAMAGE):
        run, output = starts.directory / str(number), starts.output(str(number))
        assert "resuming at step 6 of 8" in output
        (line,) = (line for line in output.splitlines() if "is damaged" in line)
        assert str(run / name) in line
        assert (run / f"{name}.damaged-1").exists()
        assert (run / "checkpoints" / "latest").read_text() == "step-000000008\n"
        assert set(jobs.losses(run)) == steps


@pytest.mark.parametrize("name", ["config.yaml", "deepspeed.json"])
def test_a_directory_in_the_place_of_a_file_is_named(starts: Starts, name: str) -> None:
    assert f"{starts.directory / name / name}: Is a directory" in starts.error(name)


def test_a_failed_start_leaves_nothing(starts: Starts) -> None:
    for name in ("no data", "no data, existing", "no checkpoint"):
        starts.error(name)
    assert not (starts.directory / "runs").exists()
    assert not list((starts.directory / "existing").iterdir())


def test_all_files_follow_the_umask(finished: Path) -> None:
    assert CheckpointStore(finished / "checkpoints").steps() == [2, 4, 6]
    assert (finished / "consolidated" / "step-000000006" / "probe.safetensors").exists()
    assert [path for path in finished.rglob("*") if path.stat().st_mode & 0o044 != 0o044] == []
