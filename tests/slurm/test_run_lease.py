"""One job at a time trains in a run directory, on a real cluster whose nodes cannot see each other's processes."""

import sys
from pathlib import Path

import pytest

from nar_scale.cluster.attempts import read_attempts

from .cluster import Cluster, eventually, write_submission

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "train.sbatch"
ONE_NODE = ("--nodes=1", "--ntasks=1", "--cpus-per-task=4")  # all of them

# A rank that holds the run directory until it is asked to stop, or finds that another one has taken it over.
STAND_IN = """\
import os, pathlib, signal, sys, time
from nar_scale.cluster.endings import Kind, report
from nar_scale.errors import UserError
from nar_scale.training.fault_tolerance.run_lease import RunLease
signal.signal(signal.SIGTERM, signal.SIG_IGN)
report(Kind.RUNNING)
def end(problem):
    report(Kind.USER_ERROR, problem)
    print(problem, flush=True)
    os._exit(2)
lease = RunLease(pathlib.Path("run"), end, heartbeat_seconds=0.5)
try:
    lease.acquire()
except UserError as error:
    end(str(error))
attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
pathlib.Path(f"holds-{attempt}").write_text(f"process {os.getpid()} on {os.uname().nodename} of SLURM job")
with lease:
    while not os.path.exists("finish"):
        time.sleep(0.1)
report(Kind.COMPLETE)
"""


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    return write_submission(tmp_path, STAND_IN)


def submit(cluster: Cluster, submission: Path) -> str:
    env = {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    arguments = ("config.yaml", "training.run_directory=run")
    return cluster.submit(SCRIPT, *arguments, options=ONE_NODE, directory=submission, env=env)


def test_of_two_jobs_the_second_is_refused(cluster: Cluster, submission: Path) -> None:
    first = submit(cluster, submission)
    eventually("a holder", (submission / "holds-0").exists)
    holder = (submission / "holds-0").read_text()
    second = submit(cluster, submission)
    cluster.wait(second, ("FAILED",), timeout=90)
    assert cluster.show(second)["ExitCode"] == "2:0"
    assert cluster.show(second)["NodeList"] != cluster.show(first)["NodeList"]
    assert f"is in use by {holder} {first}, attempt 0" in cluster.output(second)
    (submission / "finish").touch()
    cluster.wait(first)
    assert not list((submission / "run").glob("lease-*"))


def test_a_requeued_job_takes_over_from_the_attempt_on_a_node_that_was_cut_off(
    cluster: Cluster, submission: Path
) -> None:
    job = submit(cluster, submission)
    eventually("a holder", (submission / "holds-0").exists)
    node = cluster.show(job)["NodeList"]
    cluster.cut_link(node)
    try:
        # SLURM finds out by itself, after its SlurmdTimeout
        eventually("the next attempt", (submission / "holds-1").exists, timeout=150)
        second = (submission / "holds-1").read_text()
        assert f" on {node} " not in second
        output = Path(cluster.show(job)["StdOut"])
        # the attempt on the node that was cut off still runs, and reads and writes the same files
        eventually("the end of the first", lambda: f"has been taken over by {second} {job}" in output.read_text())
        (submission / "finish").touch()
        cluster.wait(job)
    finally:
        cluster.restore_link(node)
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert cluster.show(job)["Restarts"] == "1"
    assert read_attempts(submission / "run")[-1].why == "complete"
