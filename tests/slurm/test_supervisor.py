"""What becomes of a job that has lost ranks, nodes or SLURM's controller, on a real cluster, with stand-in ranks."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nar_scale.cluster.attempts import read_attempts
from nar_scale.cluster.decision import ATTEMPTS_WITHOUT_STEP

from .cluster import Cluster, unavailable

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "train.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")

# `SCENARIO` says how an attempt ends, but for the last ones, which succeed.
STAND_IN = """\
import os, pathlib, signal, sys, time
from nar_scale.cluster.endings import Kind, report
signal.signal(signal.SIGTERM, signal.SIG_IGN)
rank, attempt = int(os.environ["SLURM_PROCID"]), int(os.environ.get("SLURM_RESTART_COUNT", 0))
scenario, last = os.environ["SCENARIO"].split()
report(Kind.RUNNING)
pathlib.Path(f"task-{attempt}-{rank}").touch()
if attempt >= int(last):
    if rank == 0:
        pathlib.Path("run/checkpoints").mkdir(exist_ok=True)
        pathlib.Path("run/checkpoints/latest").write_text("step-000000009")
    report(Kind.COMPLETE)
    sys.exit(0)
if scenario == "stopped":
    while not os.path.exists(os.environ["NAR_SCALE_STOP_FILE"]):
        time.sleep(0.1)
    report(Kind.STOPPED)
    sys.exit(85)
if rank:
    time.sleep(1000 if scenario == "dead-node" else 1)
    os.kill(os.getpid(), signal.SIGKILL)
while scenario == "dead-node" and not os.path.exists("off"):
    time.sleep(0.1)
report(Kind.PEER_LOST, "the connection to another process was lost")
sys.exit(1)
"""


def eventually(what: str, condition: Callable[[], bool], timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} seconds: {what}"
        time.sleep(0.1)


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "train.py").write_text(STAND_IN)
    shutil.copy(REPOSITORY / "configs" / "quickstart_nar.yaml", tmp_path / "config.yaml")
    return tmp_path


def submit(cluster: Cluster, submission: Path, scenario: str, options: tuple[str, ...] = TWO_NODES) -> str:
    """A scenario, and the attempt that succeeds."""
    env = {
        "NAR_SCALE_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "SCENARIO": scenario,
        "NAR_SCALE_WAIT_SECONDS": "6",
    }
    return cluster.submit(
        SCRIPT, "config.yaml", "training.run_directory=run", options=options, directory=submission, env=env
    )


def test_attempts_that_lose_a_rank_and_come_to_nothing_end(cluster: Cluster, submission: Path) -> None:
    job = submit(cluster, submission, "killed-rank 99")
    cluster.wait(job, ("FAILED",), timeout=180)
    output = cluster.output(job)
    assert cluster.show(job)["Restarts"] == str(ATTEMPTS_WITHOUT_STEP - 1), output
    attempts = read_attempts(submission / "run")
    assert [attempt.attempt for attempt in attempts] == list(range(ATTEMPTS_WITHOUT_STEP))
    for attempt in attempts:
        assert (attempt.job, attempt.nodes, attempt.start_step, attempt.step) == (job, "n[1-2]", 0, 0)
        assert attempt.end is not None
        assert attempt.end > attempt.start
        assert "rank 1 on n2" in (attempt.why or "")
    assert output.count("requeued to go on") == ATTEMPTS_WITHOUT_STEP - 1
    assert output.count("still no checkpoint") >= ATTEMPTS_WITHOUT_STEP
    assert f"not requeued: {ATTEMPTS_WITHOUT_STEP} attempt(s) in a row" in output
    assert "sbatch --exclude=n2" in output
    assert not list(submission.glob("slurm-attempt-*"))


def test_a_stop_while_the_controller_is_down_ends_in_a_requeue(cluster: Cluster, submission: Path) -> None:
    job = submit(cluster, submission, "stopped 1")
    eventually("2 tasks", lambda: len(list(submission.glob("task-0-*"))) == 2)
    output = Path(cluster.show(job)["StdOut"])
    cluster.stop_controller()
    try:
        (submission / f"slurm-stop-{job}").touch()
        eventually("a controller that does not answer", lambda: "controller does not answer" in output.read_text())
    finally:
        cluster.start_controller()
    cluster.wait(job, timeout=120)
    assert cluster.show(job)["Restarts"] == "1", cluster.output(job)
    assert [attempt.why for attempt in read_attempts(submission / "run")] == ["saved", "complete"]


@pytest.fixture
def patient_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With SLURM's default of 300 seconds until a node is taken for dead, and a spare node."""
    if reason := unavailable():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("patient"), nodes=3, slurmd_timeout=300)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_a_node_whose_death_slurm_has_not_noticed(patient_cluster: Cluster, submission: Path) -> None:
    cluster = patient_cluster
    job = submit(cluster, submission, "dead-node 1")
    eventually("2 tasks", lambda: len(list(submission.glob("task-0-*"))) == 2)
    cluster.power_off("n2")
    (submission / "off").touch()
    output = Path(cluster.show(job)["StdOut"])
    eventually("a requeue", lambda: "requeued to go on" in output.read_text())
    cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=dead")  # as SLURM would after the rest
    cluster.wait(job, timeout=120)
    first, second = read_attempts(submission / "run")
    assert "rank 1 on n2 ended without a word" in (first.why or "")
    assert (second.nodes, second.step, second.why) == ("n[1,3]", 9, "complete")
    assert "ExcNodeList=n2, or submit again" in output.read_text()
