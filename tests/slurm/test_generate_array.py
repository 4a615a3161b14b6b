"""slurm/generate.sbatch: around a stand-in for the worker that notes its arguments, and with real workers."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from nar_scale.cluster.generation import ATTEMPTS_WITHOUT_RESULT
from nar_scale.commands.generate import main as generate_command
from nar_scale.fleet import read_status
from tests.generation.helpers import export

from .cluster import Cluster, eventually

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "generate.sbatch"
# "wait": waits for the stop file in its first attempt, and ends like a worker that was asked to stop; "slow": in every
# attempt, before it has made anything; "kill": the second of several tasks is killed in the first attempt
STAND_IN = """\
import json, os, pathlib, signal, sys, time
from nar_scale.cluster.endings import NO_RESULT_YET, Kind, report
report(Kind.RUNNING)
task, attempt = os.environ.get("SLURM_PROCID", "0"), os.environ.get("SLURM_RESTART_COUNT", "0")
name = f"{os.environ.get('SLURM_ARRAY_TASK_ID', 'job')}-{task}-{attempt}"
pathlib.Path(f"worker-{name}.json").write_text(json.dumps(sys.argv[1:]))
if "kill" in sys.argv and (task, attempt) == ("1", "0"):
    os.kill(os.getpid(), signal.SIGKILL)
if "slow" in sys.argv or ("wait" in sys.argv and attempt == "0"):
    while not os.path.exists(os.environ["NAR_SCALE_STOP_FILE"]):
        time.sleep(0.1)
    report(Kind.STOPPED, NO_RESULT_YET if "slow" in sys.argv else "")
    sys.exit(85)
if "crash" in sys.argv:
    report(Kind.ERROR, "a crash")
    sys.exit(3)
report(Kind.COMPLETE)
"""
ARGUMENTS = ("--checkpoint", "a checkpoint", "--output", "samples", "--num-samples", "6")


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """A directory to submit from."""
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "generate.py").write_text(STAND_IN)
    return tmp_path


def submit(
    cluster: Cluster, submission: Path, *options: str, more: tuple[str, ...] = (), path: str = os.environ["PATH"]
) -> str:
    env = {"NAR_SCALE_PYTHON": sys.executable, "PATH": path}
    return cluster.submit(SCRIPT, *ARGUMENTS, *more, options=options, directory=submission, env=env)


def started(submission: Path) -> list[str]:
    return sorted(path.stem.removeprefix("worker-") for path in submission.glob("worker-*.json"))


@pytest.mark.parametrize(
    ("options", "tasks", "workers"),
    [
        (("--array=1,3",), ("_1", "_3"), ["1-0-0", "3-0-0"]),
        ((), ("",), ["job-0-0"]),
        (("--nodes=2", "--ntasks-per-node=2"), ("",), ["job-0-0", "job-1-0", "job-2-0", "job-3-0"]),
    ],
    ids=["an array of any tasks", "a job", "a job of several tasks"],
)
def test_each_task_is_a_worker(
    cluster: Cluster, submission: Path, options: tuple[str, ...], tasks: tuple[str, ...], workers: list[str]
) -> None:
    job = submit(cluster, submission, *options)
    for task in tasks:
        cluster.wait(f"{job}{task}")
    assert started(submission) == workers
    for worker in workers:
        assert json.loads((submission / f"worker-{worker}.json").read_text()) == list(ARGUMENTS)


@pytest.mark.parametrize("options", [(), ("--nodes=2", "--ntasks-per-node=1")], ids=["one worker", "two workers"])
def test_a_worker_that_is_asked_to_stop_is_requeued(
    cluster: Cluster, submission: Path, options: tuple[str, ...]
) -> None:
    job = submit(cluster, submission, *options, more=("wait",))
    eventually("worker", lambda: len(started(submission)) == (2 if options else 1))
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait(job)
    assert cluster.show(job)["Restarts"] == "1"
    assert started(submission)[-1].endswith("-1")
    assert not list(submission.glob("slurm-stop-*"))


def test_of_an_array_the_task_that_is_asked_is_requeued(cluster: Cluster, submission: Path) -> None:
    """Also the last one, whose id is that of the array as well."""
    job = submit(cluster, submission, "--array=0-1", more=("wait",))
    eventually("two workers", lambda: len(started(submission)) == 2)
    for task in ("_1", "_0"):
        cluster.run("scancel", "--batch", "--signal=USR1", f"{job}{task}")
        cluster.wait(f"{job}{task}")
        assert cluster.show(f"{job}{task}")["Restarts"] == "1"
    assert started(submission) == ["0-0-0", "0-0-1", "1-0-0", "1-0-1"]


def test_a_controller_that_does_not_answer_at_once_is_asked_again(cluster: Cluster, submission: Path) -> None:
    scontrol = submission / "scontrol"
    answer = f'exec {shutil.which("scontrol")} "$@"'
    problem = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2'
    scontrol.write_text(f"#!/bin/sh\n[ -e asked ] && {answer}\ntouch asked\n{problem}\nexit 1\n")
    scontrol.chmod(0o755)
    job = submit(cluster, submission, more=("wait",), path=f"{submission}:{os.environ['PATH']}")
    eventually("worker", lambda: len(started(submission)) == 1)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait(job)
    assert (submission / "asked").exists()
    assert cluster.show(job)["Restarts"] == "1"


def test_a_failure_is_not_requeued(cluster: Cluster, submission: Path) -> None:
    job = submit(cluster, submission, more=("crash",))
    cluster.wait(job, ("FAILED",))
    assert cluster.show(job)["ExitCode"] == "3:0"
    assert cluster.show(job)["Restarts"] == "0"
    assert "worker 0 on n" in cluster.output(job)
    assert "a crash" in cluster.output(job)


def test_attempts_without_a_result_are_bounded(cluster: Cluster, submission: Path) -> None:
    job = submit(cluster, submission, more=("slow",))
    for attempt in range(ATTEMPTS_WITHOUT_RESULT):
        eventually("worker", lambda attempt=attempt: f"job-0-{attempt}" in started(submission), timeout=180)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait(job, ("FAILED",))
    assert len(started(submission)) == ATTEMPTS_WITHOUT_RESULT
    assert cluster.output(job).count("attempt(s) in a row without a result") == ATTEMPTS_WITHOUT_RESULT
    assert not list(submission.glob("slurm-attempt*"))


def test_a_killed_worker_does_not_keep_the_others_from_going_on(cluster: Cluster, submission: Path) -> None:
    job = submit(cluster, submission, "--nodes=2", "--ntasks-per-node=1", more=("kill", "wait"))
    eventually("two workers", lambda: started(submission) == ["job-0-0", "job-1-0"])
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait(job)
    assert cluster.show(job)["Restarts"] == "1"
    assert re.search(r"worker 1 on n\d: was killed", cluster.output(job))


def test_work_that_the_others_have_finished_is_done(cluster: Cluster, submission: Path) -> None:
    job = submit(cluster, submission, "--nodes=2", "--ntasks-per-node=1", more=("kill",))
    cluster.wait(job)
    assert cluster.show(job)["ExitCode"] == "0:0"
    assert re.search(r"worker 1 on n\d: was killed", cluster.output(job))


@pytest.mark.parametrize(
    ("command", "told"), [("generate", "no launcher/generate.py in"), ("train", "no launcher/train.py in")]
)
def test_submitted_elsewhere_is_one_clear_line(cluster: Cluster, tmp_path: Path, command: str, told: str) -> None:
    job = cluster.submit(REPOSITORY / "slurm" / f"{command}.sbatch", *ARGUMENTS, directory=tmp_path)
    cluster.wait(job, ("FAILED",))
    assert told in cluster.output(job)
    assert len(cluster.output(job).splitlines()) == 1


def test_real_workers_share_the_samples_and_go_on_after_kills(cluster: Cluster, tmp_path: Path) -> None:
    checkpoint = export(tmp_path / "exported", "non_autoregressive")
    (tmp_path / "launcher").symlink_to(REPOSITORY / "launcher")
    what = ("--checkpoint", checkpoint, "--num-samples", 130, "--seed", 5, "--part-size", 8, "--batch-size", 2)
    env = {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    arguments = (*what, "--output", "samples", "--lease", 3)
    job = cluster.submit(SCRIPT, *arguments, options=("--array=0-1",), directory=tmp_path, env=env)
    samples = tmp_path / "samples"
    eventually("part", lambda: list(samples.glob("part-*.jsonl")), 120)
    cluster.run("scancel", "--signal=KILL", "--full", f"{job}_0")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    cluster.wait(f"{job}_1", timeout=120)
    assert read_status(samples).complete
    assert generate_command([*map(str, what), "--output", str(tmp_path / "alone")]) == 0
    parts = sorted(path.name for path in samples.iterdir())
    assert parts == sorted(path.name for path in (tmp_path / "alone").iterdir())
    for name in parts:
        assert (samples / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
