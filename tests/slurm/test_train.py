"""slurm/train.sbatch: first its control flow, around stand-ins that end as told, then real training on two nodes."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.jobs import losses

from .cluster import Cluster, eventually
from .training import OVERRIDES, REPOSITORY, SCRIPT, STEPS, environment, prepare_submission, submit_run

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")

# Notes its environment; the first attempt then does what its second argument says, a later attempt succeeds.
STAND_IN = """\
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the trainer does not die of it either: it saves
names = [
    "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_CPUS_PER_TASK",
    "SLURMD_NODENAME", "OMP_NUM_THREADS", "SLURM_JOB_END_TIME",
]
attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
seen = {name: os.environ.get(name) for name in names}
pathlib.Path(f"task-{attempt}-{seen['SLURM_PROCID']}.json").write_text(json.dumps(seen))
if attempt or sys.argv[3] == "succeed":
    sys.exit(0)
if sys.argv[3] == "crash":
    sys.exit(3)
while not os.path.exists(os.environ["NAR_SCALE_STOP_FILE"]):
    time.sleep(0.1)
time.sleep(int(seen["SLURM_PROCID"]) * float(sys.argv[4]))
sys.exit(85)
"""


class TestControlFlow:
    @pytest.fixture
    def submission(self, tmp_path: Path) -> Path:
        """A directory to submit from, with a stand-in for the trainer."""
        (tmp_path / "launcher").mkdir()
        (tmp_path / "launcher" / "train.py").write_text(STAND_IN)
        (tmp_path / "config.yaml").touch()
        return tmp_path

    def submit(self, cluster: Cluster, submission: Path, *arguments: str, options: tuple[str, ...] = TWO_NODES) -> str:
        env = {"NAR_SCALE_PYTHON": sys.executable}
        return cluster.submit(SCRIPT, *arguments, options=options, directory=submission, env=env)

    def tasks(self, submission: Path, attempt: int = 0) -> list[dict[str, str]]:
        return [json.loads(path.read_text()) for path in sorted(submission.glob(f"task-{attempt}-*.json"))]

    def wait_for_tasks(self, submission: Path, count: int) -> None:
        eventually(f"{count} tasks", lambda: len(list(submission.glob("task-0-*.json"))) == count)

    def test_tasks_find_each_other(self, cluster: Cluster, submission: Path) -> None:
        options = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2", "--time=10")
        submitted = int(time.time())
        job = self.submit(cluster, submission, "config.yaml", "succeed", options=options)
        cluster.wait(job)
        tasks = self.tasks(submission)
        assert [task["SLURM_PROCID"] for task in tasks] == ["0", "1", "2", "3"]
        assert [task["SLURM_LOCALID"] for task in tasks] == ["0", "1", "0", "1"]
        assert [task["SLURMD_NODENAME"] for task in tasks] == ["n1", "n1", "n2", "n2"]
        assert {task["SLURM_NTASKS"] for task in tasks} == {"4"}
        assert {task["MASTER_ADDR"] for task in tasks} == {"n1"}
        assert {task["MASTER_PORT"] for task in tasks} == {str(20000 + int(job))}
        assert {task["SLURM_CPUS_PER_TASK"] for task in tasks} == {"2"}
        assert {task["OMP_NUM_THREADS"] for task in tasks} == {"2"}
        (end,) = {int(task["SLURM_JOB_END_TIME"]) for task in tasks}
        assert submitted + 600 <= end <= time.time() + 600

    def test_one_task_for_each_gpu(self, cluster: Cluster, submission: Path) -> None:
        """With fewer CPUs than GPUs; other layouts: tests/cluster/test_layout.py."""
        options = (*TWO_NODES, f"--gpus-per-node={cluster.gpus}", "--cpus-per-task=1")
        cluster.wait(self.submit(cluster, submission, "config.yaml", "succeed", options=options))
        assert [task["SLURM_LOCALID"] for task in self.tasks(submission)] == ["0", "1", "0", "1"]
        assert {task["OMP_NUM_THREADS"] for task in self.tasks(submission)} == {"1"}

    def test_exclusive_nodes_are_used_whole(self, cluster: Cluster, submission: Path) -> None:
        options = ("--nodes=2", "--ntasks-per-node=2", "--exclusive")
        cluster.wait(self.submit(cluster, submission, "config.yaml", "succeed", options=options))
        assert {task["SLURM_CPUS_PER_TASK"] for task in self.tasks(submission)} == {"2"}

    def test_stop_request_saves_and_requeues(self, cluster: Cluster, submission: Path) -> None:
        longer_than_kill_wait = "4"  # the second task is not killed because the first has ended with a status
        job = self.submit(cluster, submission, "config.yaml", "wait", longer_than_kill_wait)
        self.wait_for_tasks(submission, 2)
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.wait(job)
        assert cluster.show(job)["Restarts"] == "1"
        assert len(self.tasks(submission, attempt=1)) == 2
        assert not list(submission.glob("slurm-stop-*"))

    def test_time_limit_saves_and_requeues(self, cluster: Cluster, submission: Path) -> None:
        options = (*TWO_NODES, "--time=1", "--signal=B:USR1@55")
        job = self.submit(cluster, submission, "config.yaml", "wait", "0", options=options)
        cluster.wait(job, timeout=120)
        assert cluster.show(job)["Restarts"] == "1"

    def test_cancelled_job_stays_cancelled(self, cluster: Cluster, submission: Path) -> None:
        job = self.submit(cluster, submission, "config.yaml", "wait", "0")
        self.wait_for_tasks(submission, 2)
        cluster.run("scancel", job)
        cluster.wait(job, ("CANCELLED",))
        time.sleep(2)
        assert cluster.state(job) == "CANCELLED"

    def test_failure_is_not_requeued(self, cluster: Cluster, submission: Path) -> None:
        job = self.submit(cluster, submission, "config.yaml", "crash")
        cluster.wait(job, ("FAILED",))
        assert cluster.show(job)["ExitCode"] == "3:0"
        assert cluster.show(job)["Restarts"] == "0"

    def test_wrong_use_is_one_clear_line(self, cluster: Cluster, submission: Path) -> None:
        """Other mistakes: tests/cluster/test_supervisor.py."""
        job = self.submit(cluster, submission, "missing.yaml")
        cluster.wait(job, ("FAILED",))
        assert len(cluster.output(job).splitlines()) == 1
        assert "no configuration file missing.yaml" in cluster.output(job)


class TestTraining:
    @pytest.fixture
    def submission(self, tmp_path: Path, corpus: Path) -> Path:
        return prepare_submission(tmp_path, corpus)

    def submit(self, cluster: Cluster, submission: Path, run: str, options: tuple[str, ...]) -> str:
        # which is of the first attempt: a job that is requeued goes on
        return submit_run(cluster, submission, run, options, "--resume", "never")

    def test_interrupted_run_on_two_nodes_equals_one_on_one_node(self, cluster: Cluster, submission: Path) -> None:
        interrupted = self.submit(cluster, submission, "interrupted", (*TWO_NODES, "--cpus-per-task=1"))

        def steps_done() -> int:
            cluster.wait(interrupted, ("PENDING", "RUNNING"))
            return len(losses(submission / "interrupted"))

        eventually("5 steps", lambda: steps_done() >= 5, timeout=180)
        cluster.run("scancel", "--batch", "--signal=USR1", interrupted)
        cluster.wait(interrupted, timeout=180)
        assert cluster.show(interrupted)["Restarts"] == "1", cluster.output(interrupted)
        log = (submission / "interrupted" / "events.jsonl").read_text().splitlines()
        first, second = (event["text"] for event in map(json.loads, log) if event["kind"] == "attempts")
        assert f"job {interrupted}, attempt 0 on n[1-2]" in first
        assert f"job {interrupted}, attempt 0 on n[1-2]" in second  # as it has ended, and the one that begins
        assert f"job {interrupted}, attempt 1 on n[1-2]" in second
        assert ": saved" in second
        assert "ended without a word" not in first + second

        straight = self.submit(
            cluster, submission, "straight", ("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1")
        )
        cluster.wait(straight, timeout=180)
        assert cluster.show(straight)["Restarts"] == "0"

        expected = losses(submission / "straight")
        assert sorted(expected) == list(range(1, STEPS + 1))
        assert losses(submission / "interrupted") == pytest.approx(expected, rel=1e-5)

    def test_preflight_names_the_node_that_lacks_shards(self, cluster: Cluster, submission: Path) -> None:
        def preflight(end: str) -> str:
            script = REPOSITORY / "slurm" / "preflight.sbatch"
            arguments = ("config.yaml", *OVERRIDES, "training.run_directory=checked")
            options = (*TWO_NODES, "--cpus-per-task=1")
            job = cluster.submit(script, *arguments, options=options, directory=submission, env=environment())
            cluster.wait(job, (end,), timeout=180)
            return cluster.output(job)

        shutil.copytree(REPOSITORY / "slurm", submission / "slurm")
        output = preflight("COMPLETED")
        assert "2 nodes, the first with 1 x cpu: " in output
        assert "nothing is in the way of a run on 2 rank(s)" in output
        assert not (submission / "checked").exists()
        cluster.run("mount", "-t", "tmpfs", "none", submission / "corpus" / "train", node="n2")
        try:
            output = preflight("FAILED")
        finally:
            cluster.run("umount", submission / "corpus" / "train", node="n2")
        (line,) = [line for line in output.splitlines() if "train: error" in line]
        assert "n2, where rank 1 runs, does not have the shards of " in line
        assert "missing: corpus/train/" in line
        assert "not requeued: rank 1 on n2: " in output or "not requeued: rank 0 on n1: " in output
