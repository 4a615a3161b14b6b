import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, unavailable
from .training import prepare_corpus


@pytest.fixture(scope="session")
def slurm() -> None:
    """Skip where no cluster can be started, or fail where one is required."""
    if reason := unavailable():
        if os.environ.get("CI") == "true" or os.environ.get("NAR_SCALE_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus."""
    return prepare_corpus(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(autouse=True)
def without_threads_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are submitted with the environment of the shell, which may say something of its own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
