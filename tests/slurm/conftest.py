import os
from collections.abc import Iterator

import pytest

from .cluster import Cluster, unavailable


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := unavailable():
        if os.environ.get("CI") == "true" or os.environ.get("NAR_SCALE_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def without_threads_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are submitted with the environment of the shell, which may say something of its own."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
