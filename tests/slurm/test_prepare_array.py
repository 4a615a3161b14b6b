"""slurm/prepare.sbatch: around a stand-in for the launcher that notes its arguments, and with real parts and merge."""

import json
import sys
from pathlib import Path

import pytest

from nar_scale.data import prepare
from tests.data.corpora import check_whole, tree, write_corpus

from .cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "prepare.sbatch"
STAND_IN = """\
import json, os, pathlib, sys
name = os.environ.get("SLURM_ARRAY_TASK_ID", "merge")
pathlib.Path(f"arguments-{name}.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """A directory to submit from."""
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "prepare.py").write_text(STAND_IN)
    return tmp_path


def submit(cluster: Cluster, submission: Path, *options: str, more: tuple[str, ...] = ()) -> str:
    arguments = ("--input", "a folder", "--output", "data", "--seq-len", 64, *more)
    env = {"NAR_SCALE_PYTHON": sys.executable}
    return cluster.submit(SCRIPT, *arguments, options=options, directory=submission, env=env)


@pytest.mark.parametrize("first", [1, 5])
def test_array_tasks_are_the_parts(cluster: Cluster, submission: Path, first: int) -> None:
    job = submit(cluster, submission, f"--array={first}-{first + 2}%2", "--cpus-per-task=2")
    for part in range(3):
        cluster.wait(f"{job}_{first + part}")
        arguments = json.loads((submission / f"arguments-{first + part}.json").read_text())
        passed_on = ["--input", "a folder", "--output", "data", "--seq-len", "64"]
        assert arguments == ["--workers", "2", *passed_on, "--part", f"{part + 1}/3"]


@pytest.mark.parametrize(
    ("options", "more", "task", "message"),
    [
        ((), (), "", "not a job array"),
        (("--array=1,3",), (), "_3", "a range without gaps"),
        (("--array=1-2",), ("--merge",), "_2", "submit it without --array"),
        (("--array=1-2",), ("--part", "1/2"), "_1", "leave it out"),
        (("--array=1-2",), ("--part=1/2",), "_1", "leave it out"),
    ],
)
def test_wrong_use_is_one_clear_line(
    cluster: Cluster, submission: Path, options: tuple[str, ...], more: tuple[str, ...], task: str, message: str
) -> None:
    job = submit(cluster, submission, *options, more=more) + task
    cluster.wait(job, ("FAILED",))
    assert len(cluster.output(job).splitlines()) == 1
    assert message in cluster.output(job)


def test_real_parts_and_the_merge_after_them_make_the_data_set_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "launcher").symlink_to(REPOSITORY / "launcher")
    arguments = ("--input", "corpus", "--output", "data", "--seq-len", 64, "--validation", 0.3, "--unit-bytes", 2000)
    submission = {
        "directory": tmp_path,
        "env": {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)},
    }
    job = cluster.submit(SCRIPT, *arguments, options=("--array=1-3",), **submission)
    merge = cluster.submit(SCRIPT, *arguments, "--merge", options=(f"--dependency=afterok:{job}",), **submission)
    cluster.wait(merge, timeout=120)
    for part in range(1, 4):
        assert f"part {part}/3: 4 of 12 work items done in data" in cluster.output(f"{job}_{part}")
    assert "wrote data" in cluster.output(merge)
    settings = {"seq_len": 64, "validation": 0.3, "unit_bytes": 2000}
    prepare([tmp_path / "corpus"], tmp_path / "alone", **settings, workers=1, progress=False)
    assert tree(tmp_path / "data") == tree(tmp_path / "alone")
    check_whole(tmp_path / "data")


def test_the_merge_does_not_start_after_a_part_that_failed(cluster: Cluster, submission: Path) -> None:
    (submission / "launcher" / "prepare.py").write_text("import sys; sys.exit(2 if sys.argv[-1] == '2/2' else 0)")
    job = submit(cluster, submission, "--array=1-2")
    merge = submit(cluster, submission, f"--dependency=afterok:{job}", "--kill-on-invalid-dep=yes", more=("--merge",))
    cluster.wait(f"{job}_2", ("FAILED",))
    cluster.wait(merge, ("CANCELLED",))
    assert not (submission / "arguments-merge.json").exists()
