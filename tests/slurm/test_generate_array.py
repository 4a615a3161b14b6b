"""slurm/generate.sbatch: around a stand-in for the worker that notes its arguments, and with real workers."""

import json
import sys
from pathlib import Path

import pytest

from nar_scale.generation import SamplingOptions, generate, samples_from_scratch
from tests.generation.helpers import export

from .cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "generate.sbatch"
STAND_IN = """\
import json, os, pathlib, sys
pathlib.Path(f"worker-{os.environ['SLURM_ARRAY_TASK_ID']}.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """A directory to submit from."""
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "generate.py").write_text(STAND_IN)
    return tmp_path


def submit(cluster: Cluster, submission: Path, *options: str) -> str:
    arguments = ("--checkpoint", "a checkpoint", "--output", "samples", "--num-samples", 6)
    env = {"NAR_SCALE_PYTHON": sys.executable}
    return cluster.submit(SCRIPT, *arguments, options=options, directory=submission, env=env)


@pytest.mark.parametrize("first", [0, 5])
def test_array_tasks_are_the_workers(cluster: Cluster, submission: Path, first: int) -> None:
    job = submit(cluster, submission, f"--array={first}-{first + 2}%2")
    for worker in range(3):
        cluster.wait(f"{job}_{first + worker}")
        arguments = json.loads((submission / f"worker-{first + worker}.json").read_text())
        passed_on = ["--checkpoint", "a checkpoint", "--output", "samples", "--num-samples", "6"]
        assert arguments == [*passed_on, "--worker", f"{worker}/3"]


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ((), "", "not a job array"),
        (("--array=1,3",), "_3", "a range without gaps"),
    ],
)
def test_wrong_use_is_one_clear_line(
    cluster: Cluster, submission: Path, options: tuple[str, ...], task: str, message: str
) -> None:
    job = submit(cluster, submission, *options) + task
    cluster.wait(job, ("FAILED",))
    assert len(cluster.output(job).splitlines()) == 1
    assert message in cluster.output(job)


def test_real_workers_share_the_samples(cluster: Cluster, tmp_path: Path) -> None:
    checkpoint = export(tmp_path / "exported", "non_autoregressive")
    (tmp_path / "launcher").symlink_to(REPOSITORY / "launcher")
    arguments = ("--checkpoint", checkpoint, "--output", "samples", "--num-samples", 130, "--seed", 5)
    env = {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    job = cluster.submit(SCRIPT, *arguments, options=("--array=0-1",), directory=tmp_path, env=env)
    for worker in range(2):
        cluster.wait(f"{job}_{worker}")
    parts = sorted((tmp_path / "samples").glob("part-*.jsonl"))
    alone = generate(checkpoint, tmp_path / "alone", samples_from_scratch(130), SamplingOptions(seed=5), progress=False)
    assert [part.read_text() for part in parts] == [part.read_text() for part in alone]
    assert sum(len(part.read_text().splitlines()) for part in parts) == 130
