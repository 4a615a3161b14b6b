"""What becomes of a job that has lost ranks, nodes or SLURM's controller, on a real cluster, with stand-in ranks."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nar_scale.cluster.attempts import read_attempts
from nar_scale.cluster.decision import ATTEMPTS_WITHOUT_STEP

from .cluster import Cluster, eventually, write_submission

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "train.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")

# `SCENARIO` says how an attempt ends, but for the last ones, which succeed.
STAND_IN = """\
import os, pathlib, signal, sys, time
from nar_scale.cluster.attempts import read_attempts
from nar_scale.cluster.endings import Kind, report
from nar_scale.config import dump_config, load_config
signal.signal(signal.SIGTERM, signal.SIG_IGN)
run = pathlib.Path("run")
rank, attempt = int(os.environ["SLURM_PROCID"]), len(read_attempts(run)) - 1
scenario, last = os.environ["SCENARIO"].split()
report(Kind.RUNNING)
pathlib.Path(f"task-{attempt}-{rank}").touch()
if attempt >= int(last):
    if rank == 0:
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "latest").write_text("step-000000009")
        (run / "config.yaml").write_text(dump_config(load_config(sys.argv[2], sys.argv[3:])))
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


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    return write_submission(tmp_path, STAND_IN)


def submit(cluster: Cluster, submission: Path, scenario: str, options: tuple[str, ...] = TWO_NODES, **more: str) -> str:
    """A scenario, and the attempt that succeeds; in an environment with more in it."""
    env = {
        "NAR_SCALE_PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "SCENARIO": scenario,
        "NAR_SCALE_WAIT_SECONDS": "6",
        **more,
    }
    arguments = ("config.yaml", "training.run_directory=run", "training.steps=9")
    return cluster.submit(SCRIPT, *arguments, options=options, directory=submission, env=env)


def submit_chain(cluster: Cluster, submission: Path, scenario: str, links: int) -> list[str]:
    """Jobs that follow each other, as where requeue is forbidden."""
    chain: list[str] = []
    for _ in range(links):
        after = [f"--dependency=afterany:{job}" for job in chain[-1:]]
        chain.append(submit(cluster, submission, scenario, (*TWO_NODES, "--no-requeue", *after)))
    return chain


def test_a_stop_while_the_controller_is_down_ends_in_a_requeue(cluster: Cluster, submission: Path) -> None:
    # SLURM's commands give up sooner in the job than its daemons do: a daemon that has told the controller in vain that
    # the tasks have ended tries again a minute later, and the next attempt waits for that
    impatient, python = submission / "slurm.conf", submission / "python"
    impatient.write_text((cluster.directory / "slurm.conf").read_text() + "MessageTimeout=3\n")
    python.write_text(f'#!/bin/sh\nSLURM_CONF={impatient} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = submit(cluster, submission, "stopped 1", NAR_SCALE_PYTHON=str(python))
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


def test_a_chain_ends_at_once_when_the_run_is_complete(cluster: Cluster, submission: Path) -> None:
    first, second, third = submit_chain(cluster, submission, "stopped 1", 3)
    eventually("2 tasks", lambda: len(list(submission.glob("task-0-*"))) == 2)
    (submission / f"slurm-stop-{first}").touch()
    cluster.wait(third)
    assert [cluster.state(job) for job in (first, second)] == ["FAILED", "COMPLETED"]
    (refused,) = (line for line in cluster.output(first).splitlines() if "no requeue" in line)
    assert refused.startswith("train.sbatch: saved, but no requeue (")
    assert "submit again to go on" in refused
    assert [(attempt.job, attempt.why) for attempt in read_attempts(submission / "run")] == [
        (first, "saved"),
        (second, "complete"),
    ]
    (line,) = cluster.output(third).splitlines()
    assert line == "train.sbatch: run is complete, nothing is left to train"
    assert not list(submission.glob("task-2-*"))


def test_a_chain_that_comes_to_nothing_ends(cluster: Cluster, submission: Path) -> None:
    chain = submit_chain(cluster, submission, "killed-rank 99", ATTEMPTS_WITHOUT_STEP + 1)
    cluster.wait(chain[-1], ("FAILED",), timeout=120)
    assert len(list(submission.glob("task-*-0"))) == ATTEMPTS_WITHOUT_STEP
    assert f"not requeued: {ATTEMPTS_WITHOUT_STEP} attempt(s) in a row" in cluster.output(chain[-2])
    assert f"{ATTEMPTS_WITHOUT_STEP} attempt(s) in a row without a new checkpoint" in cluster.output(chain[-1])
    anew = submit(cluster, submission, f"killed-rank {ATTEMPTS_WITHOUT_STEP + 1}")
    cluster.wait(anew)
    assert read_attempts(submission / "run")[-1].why == "complete"


@pytest.fixture(scope="module")
def cluster_with_a_spare(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """With a spare node, and long enough until a node is taken for dead that a job can have ended before."""
    with Cluster(tmp_path_factory.mktemp("spare"), nodes=3, slurmd_timeout=30) as cluster:
        yield cluster


def test_a_node_that_fails_is_left_out_while_others_are_there(cluster_with_a_spare: Cluster, submission: Path) -> None:
    cluster = cluster_with_a_spare
    job = submit(cluster, submission, "killed-rank 99")
    cluster.wait(job, ("FAILED",), timeout=180)
    output = cluster.output(job)
    assert cluster.show(job)["Restarts"] == str(ATTEMPTS_WITHOUT_STEP - 1), output
    attempts = read_attempts(submission / "run")
    assert [attempt.attempt for attempt in attempts] == list(range(ATTEMPTS_WITHOUT_STEP))
    # without n2 there are two nodes left, and the job goes on with both of them whatever happens
    assert [attempt.nodes for attempt in attempts] == ["n[1-2]", "n[1,3]", "n[1,3]"], output
    for attempt, host in zip(attempts, ("n2", "n3", "n3"), strict=True):
        assert (attempt.job, attempt.start_step, attempt.step) == (job, 0, 0)
        assert attempt.submitted is not None
        assert attempt.end is not None
        assert attempt.submitted <= attempt.start < attempt.end
        assert f"rank 1 on {host}" in (attempt.why or "")
    assert output.count("requeued to go on") == ATTEMPTS_WITHOUT_STEP - 1
    assert output.count("still no checkpoint") >= ATTEMPTS_WITHOUT_STEP
    assert f"not requeued: {ATTEMPTS_WITHOUT_STEP} attempt(s) in a row" in output
    assert "look at n2, which is left out of the next attempts" in output
    assert "look at n3: the job cannot go on without it" in output
    assert "sbatch --exclude=n3" in output
    assert not list(submission.glob("slurm-attempt-*"))


def test_a_node_whose_death_slurm_has_not_noticed(cluster_with_a_spare: Cluster, submission: Path) -> None:
    cluster = cluster_with_a_spare
    job = submit(cluster, submission, "dead-node 1", NAR_SCALE_WAIT_SECONDS="1")
    eventually("2 tasks", lambda: len(list(submission.glob("task-0-*"))) == 2)
    cluster.power_off("n2")
    (submission / "off").touch()
    output = Path(cluster.show(job)["StdOut"])
    eventually("a requeue", lambda: "requeued to go on" in output.read_text())
    assert "State=DOWN" not in cluster.run("scontrol", "show", "node", "n2")
    # the job is COMPLETING until SLURM takes the node for dead, without anybody's help, and starts again after that
    cluster.wait(job, timeout=150)
    first, second = read_attempts(submission / "run")
    assert "rank 1 on n2 ended without a word" in (first.why or "")
    assert (second.nodes, second.step, second.why) == ("n[1,3]", 9, "complete")
    assert cluster.show(job)["Restarts"] == "1"
    assert "look at n2, which is left out of the next attempts" in output.read_text()
