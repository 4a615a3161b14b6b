"""Small real training jobs for the private cluster."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from nar_scale.data import prepare

from .cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "slurm" / "train.sbatch"

# Small enough for seconds of training, and steps enough that a run is not over when something happens to it.
STEPS = 100
OVERRIDES = (
    "model.dim=32",
    "model.depth=2",
    "model.heads=2",
    "model.max_seq_len=64",
    "schedule.warmup_steps=5",
    f"training.steps={STEPS}",
    "training.global_batch_size=4",
    "training.micro_batch_size=1",
    "checkpoint.every=1000",
    "logging.every=1",
    "logging.evaluate_every=0",
    "logging.sample_every=0",
    "logging.evaluation_samples=8",
    "data.directory=corpus",
)


def prepare_corpus(directory: Path) -> Path:
    """A small corpus below a directory."""
    corpus = directory / "corpus"
    prepare(
        [REPOSITORY / "nar_scale"],
        corpus,
        include="*.py",
        workers=1,
        progress=False,
        seq_len=64,
        validation=0.2,
    )
    return corpus


def prepare_submission(directory: Path, corpus: Path) -> Path:
    """Make a directory one to submit from: the launchers, a configuration and a corpus."""
    (directory / "launcher").symlink_to(REPOSITORY / "launcher")
    shutil.copy(REPOSITORY / "configs" / "quickstart_nar.yaml", directory / "config.yaml")
    shutil.copytree(corpus, directory / "corpus")
    return directory


def environment() -> dict[str, str]:
    """Of a job: this Python, and this package."""
    return {"NAR_SCALE_PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY)}


def submit_run(
    cluster: Cluster, submission: Path, run: str, options: Iterable[str], *more: str, env: dict[str, str] | None = None
) -> str:
    """Train in the run directory `run`, with sbatch's `options` and `more` overrides; the job's id."""
    arguments = ("config.yaml", *OVERRIDES, f"training.run_directory={run}", *more)
    both = {**environment(), **(env or {})}
    return cluster.submit(SCRIPT, *arguments, options=options, directory=submission, env=both)
