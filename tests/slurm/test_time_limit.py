"""What becomes of real jobs at a real time limit: a start that takes too long, and a worker with results in hand.

SLURM looks at the limits of jobs every thirty seconds, so both run at the same time.
"""

import time
from pathlib import Path

import pytest

from nar_scale.cluster.attempts import read_attempts
from nar_scale.cluster.decision import ATTEMPTS_WITHOUT_STEP
from nar_scale.commands.generate import main as generate_command
from nar_scale.fleet import read_status
from nar_scale.fleet.claims import read_holder
from tests.generation.helpers import export

from .cluster import Cluster, eventually, write_submission
from .training import REPOSITORY, environment

# The real trainer, after a start that has not ended when SLURM asks the job to stop.
SLOW_START = """\
import os, time
from nar_scale.commands.process import run_command
import nar_scale.training.launch
while not os.path.exists(os.environ["NAR_SCALE_STOP_FILE"]):
    time.sleep(0.1)
run_command("train")
"""


@pytest.fixture(scope="module")
def slow_start(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job that never comes to its first step, and where it was submitted."""
    submission = write_submission(tmp_path_factory.mktemp("slow"), SLOW_START)
    options = ("--nodelist=n2", "--ntasks=1", "--time=1", "--signal=B:USR1@50")
    job = cluster.submit(
        REPOSITORY / "slurm" / "train.sbatch",
        *("config.yaml", "training.run_directory=run"),
        options=options,
        directory=submission,
        env=environment(),
    )
    return job, submission


def test_a_worker_commits_and_goes_on(cluster: Cluster, slow_start: tuple[str, Path], tmp_path: Path) -> None:
    checkpoint = export(tmp_path / "exported", "non_autoregressive")
    (tmp_path / "launcher").symlink_to(REPOSITORY / "launcher")
    what = ("--checkpoint", checkpoint, "--num-samples", 220, "--seed", 5, "--part-size", 200, "--batch-size", 2)
    options = ("--nodelist=n1", "--time=20", "--signal=B:USR1@90")
    script, samples = REPOSITORY / "slurm" / "generate.sbatch", tmp_path / "samples"
    arguments = (*what, "--output", samples)
    job = cluster.submit(script, *arguments, options=options, directory=tmp_path, env=environment())

    # so small a work is done before any limit: the worker is held up in the middle of a unit until the limit is near
    pid = stop_worker_in_a_unit(samples, cluster)
    (running,) = read_status(samples).running
    assert 0 < running.results < 198
    hours, minutes, _ = map(int, cluster.show(job)["RunTime"].split(":"))
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2}")
    eventually("the request to stop", (tmp_path / f"slurm-stop-{job}").exists)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    cluster.run("kill", "-CONT", pid, node="n1")
    cluster.wait(job, timeout=300)

    assert cluster.show(job)["Restarts"] == "1"
    assert "generate.sbatch: committed; requeued to go on" in cluster.output(job)
    (line,) = [line for line in cluster.output(job).splitlines() if f"unit {running.unit} is continued: " in line]
    assert int(line.partition("continued: ")[2].split()[0]) >= running.results
    assert generate_command([*map(str, what), "--output", str(tmp_path / "alone")]) == 0
    assert sorted(path.name for path in samples.iterdir()) == sorted(
        path.name for path in (tmp_path / "alone").iterdir()
    )
    for path in samples.iterdir():
        assert path.read_bytes() == (tmp_path / "alone" / path.name).read_bytes()


def stop_worker_in_a_unit(samples: Path, cluster: Cluster) -> int:
    """Wait for the first results of a unit, and stop the process that makes them; its number on its node, n1."""
    deadline = time.monotonic() + 300
    while not (journals := [path for path in samples.glob(".unit-*.results") if path.stat().st_size]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    holder, _ = read_holder(journals[0].with_suffix("").read_bytes())
    assert holder is not None
    cluster.run("kill", "-STOP", holder.pid, node=holder.host)
    return holder.pid


def test_a_start_that_takes_too_long_ends_the_job(cluster: Cluster, slow_start: tuple[str, Path]) -> None:
    job, submission = slow_start
    cluster.wait(job, ("FAILED",), timeout=300)
    output = cluster.output(job)
    assert (cluster.show(job)["ExitCode"], cluster.show(job)["Restarts"]) == ("1:0", str(ATTEMPTS_WITHOUT_STEP - 1))
    *earlier, last = read_attempts(submission / "run")
    reason = "rank 0 on n2: asked to stop before its ranks had met"
    assert [attempt.why for attempt in earlier] == [reason] * (ATTEMPTS_WITHOUT_STEP - 1)
    no_progress = f"{ATTEMPTS_WITHOUT_STEP} attempt(s) in a row without a new checkpoint: there is still no checkpoint"
    assert last.why == f"{no_progress}; the last one: {reason}"
    assert f"train.sbatch: not requeued: {last.why}" in output.splitlines()
    for count in range(1, ATTEMPTS_WITHOUT_STEP):
        assert f"train.sbatch: {count} attempt(s) in a row without a new checkpoint: " in output
    assert output.count("ask for more time than a start takes") == ATTEMPTS_WITHOUT_STEP - 1
