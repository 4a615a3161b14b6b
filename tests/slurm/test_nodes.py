"""Real training on nodes that are not like the first one, and on one whose link is lost for a while.

The jobs of the first kind run at the same time, since one of them waits for a minute.
"""

import json
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from nar_scale.cluster.attempts import read_attempts
from nar_scale.cluster.endings import Kind, read_endings
from tests.distributed.jobs import losses

from .cluster import Cluster, eventually
from .training import REPOSITORY, STEPS, prepare_submission, submit_run

# Each node has what the test of its name needs; n1 is the first of all jobs, and its four CPUs are those of four jobs.
FIRST, OTHER_SOFTWARE, OWN_RUN_DIRECTORY, WITHOUT_NAMES, CUT_OFF = "n1", "n2", "n3", "n4", "n5"
ONE_CPU = ("--cpus-per-task=1", "--ntasks-per-node=1")
LIBRARY = "einops"


@pytest.fixture(scope="module")
def cluster(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Five nodes, with SLURM's default time after which it takes one for dead."""
    with Cluster(tmp_path_factory.mktemp("nodes"), nodes=5, slurmd_timeout=300) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return prepare_submission(tmp_path_factory.mktemp("submission"), corpus)


def nodes(*names: str) -> tuple[str, ...]:
    return (f"--nodes={len(names)}", f"--nodelist={','.join(names)}")


@pytest.fixture(scope="module")
def refused_jobs(cluster: Cluster, submission: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A job on the first node and each of those that are not like it, by the name of the latter."""
    changed = tmp_path_factory.mktemp("changed")

    def replace(path: Path, text: str, node: str) -> None:
        (changed / path.name).write_text(text)
        cluster.run("mount", "--bind", changed / path.name, path, node=node)

    yaml, code = submission / "config.yaml", REPOSITORY / "nar_scale" / "fleet" / "merge.py"
    (metadata,) = (file for file in distribution(LIBRARY).files or () if file.name == "METADATA")
    replace(yaml, f"{yaml.read_text()}\nfaults: {{straggler_ratio: 1.75}}\n", OTHER_SOFTWARE)
    replace(code, f"{code.read_text()}\n# not like that of the other nodes\n", OTHER_SOFTWARE)
    replace(Path(str(metadata.locate())), f"Metadata-Version: 2.1\nName: {LIBRARY}\nVersion: 0.0.1\n", OTHER_SOFTWARE)
    (submission / "refused-n3").mkdir()
    cluster.run("mount", "-t", "tmpfs", "none", submission / "refused-n3", node=OWN_RUN_DIRECTORY)
    replace(Path("/etc/hosts"), "127.0.0.1 localhost\n10.77.0.4 n4\n", WITHOUT_NAMES)
    return {
        node: submit_run(
            cluster,
            submission,
            f"refused-{node}",
            (*ONE_CPU, *nodes(FIRST, node)),
            env={"NAR_SCALE_WAIT_SECONDS": "5"} if node == WITHOUT_NAMES else {},
        )
        for node in (WITHOUT_NAMES, OTHER_SOFTWARE, OWN_RUN_DIRECTORY)
    }


def refusal(cluster: Cluster, job: str) -> str:
    """The output of a job that has been refused, and is not to run again."""
    cluster.wait(job, ("FAILED",), timeout=240)
    shown, output = cluster.show(job), cluster.output(job)
    assert (shown["ExitCode"], shown["Restarts"]) == ("2:0", "0"), output
    return output


def error_of(output: str) -> str:
    """The one line in which the ranks have told what is wrong, and which of them has."""
    (line,) = [line for line in output.splitlines() if "train: error" in line]
    assert line.endswith((f"(rank 0 on {FIRST})", f"(rank 1 on {OTHER_SOFTWARE})", f"(rank 1 on {OWN_RUN_DIRECTORY})"))
    return line


def test_a_run_whose_link_is_cut_goes_on_once_it_is_back(
    cluster: Cluster, refused_jobs: dict[str, str], submission: Path
) -> None:
    options = (*ONE_CPU, *nodes(FIRST, CUT_OFF))
    timeouts = ("faults.step_timeout_seconds=10", "faults.long_timeout_seconds=60")
    job = submit_run(cluster, submission, "cut", options, "checkpoint.every=30", *timeouts)
    # in the middle between two checkpoints, since saving may take long
    eventually("steps after a checkpoint", lambda: max(losses(submission / "cut"), default=0) >= 35, timeout=180)
    cluster.cut_link(CUT_OFF)
    straight = submit_run(cluster, submission, "straight", (*ONE_CPU, *nodes(OTHER_SOFTWARE)))
    try:
        endings = submission / f"slurm-attempt-{job}-0"
        eventually("both ends", lambda: [end.kind for end in read_endings(endings)] == [Kind.HANG, Kind.HANG], 150)
    finally:
        cluster.restore_link(CUT_OFF)
    cluster.wait(job, timeout=240)
    output = cluster.output(job)
    assert cluster.show(job)["Restarts"] == "1", output
    (of_the_first, of_the_other) = sorted(line for line in output.splitlines() if "train: error" in line)
    assert "rank 1 on n5 does not answer and has kept rank 0 waiting in " in of_the_first
    assert of_the_first.endswith("(rank 0 on n1)")
    assert "rank 1 on n5: nothing has moved for " in of_the_other
    assert "; the node of rank 0, or the network to it, does not answer" in of_the_other
    first, second = read_attempts(submission / "cut")
    assert "rank 1 on n5 does not answer" in (first.why or "")
    assert (first.step, second.step, second.why) == (second.start_step, STEPS, "complete")
    assert first.step == 30

    cluster.wait(straight, timeout=180)
    expected = losses(submission / "straight")
    assert sorted(expected) == list(range(1, STEPS + 1))
    assert losses(submission / "cut") == pytest.approx(expected, rel=1e-5)
    lines = map(json.loads, (submission / "cut" / "metrics.jsonl").read_text().splitlines())
    assert set(Counter(line["step"] for line in lines if "loss" in line).values()) == {1}


def test_a_node_with_other_settings_libraries_and_code_is_named(cluster: Cluster, refused_jobs: dict[str, str]) -> None:
    output = refusal(cluster, refused_jobs[OTHER_SOFTWARE])
    line = error_of(output)
    assert "rank 1 on n2 is not like rank 0 on n1: faults.straggler_ratio 1.75, not 1.5, einops 0.0.1, not " in line
    assert "the code of nar_scale/fleet/merge.py " in line
    assert "not requeued: rank 0 on n1: rank 1 on n2 is not like" in output


def test_a_node_with_a_run_directory_of_its_own_is_named(cluster: Cluster, refused_jobs: dict[str, str]) -> None:
    line = error_of(refusal(cluster, refused_jobs[OWN_RUN_DIRECTORY]))
    assert "n3 does not see what rank 0 on n1 has written to the run directory " in line
    assert "refused-n3: set training.run_directory to one " in line


def test_a_node_that_does_not_know_the_first_one_is_named(cluster: Cluster, refused_jobs: dict[str, str]) -> None:
    """After the minute that names are given to become known."""
    output = refusal(cluster, refused_jobs[WITHOUT_NAMES])
    assert "n1: waiting for rank 1 on n4 (" in output
    assert "n4: waiting for the name of rank 0's host, 'n1', to be known" in output
    assert "not requeued: rank 1 on n4: n4 knows no host of the name 'n1', " in output
