"""A GPU or a rehearsal without one, and the runs that the tests look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import jobs
from tests.generation.helpers import export

from .cases import CASES, KINDS
from .corpora import LENGTH, VOCABULARY, write_tokens
from .runs import Process, Run, last_config, names_of

VARIABLE = "NAR_SCALE_GPU_TESTS"
MODES = ("rehearse", "rehearse-one")
HERE = Path(__file__).parent
REHEARSING = VARIABLE in os.environ
if REHEARSING:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
MODEL = {"dim": 64, "depth": 2, "heads": 2, "max_seq_len": LENGTH}
LARGE_MODEL = {"dim": 1024, "depth": 8, "heads": 16, "max_seq_len": 1024}
LARGE_VOCABULARY = 8192
if REHEARSING:
    LARGE_MODEL = {"dim": 128, "depth": 6, "heads": 4, "max_seq_len": 256}
    LARGE_VOCABULARY = 800


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_cuda(reason): not to be rehearsed on a CPU")
    if REHEARSING and os.environ[VARIABLE] not in MODES:
        raise pytest.UsageError(f"{VARIABLE} is {os.environ[VARIABLE]!r}; leave it out, or use {' or '.join(MODES)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(VARIABLE) == "rehearse-one":
        firsts = {item.nodeid.split("[")[0]: item for item in reversed(items)}
        left_out = [item for item in items if HERE in item.path.parents and item not in firsts.values()]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in (item for item in items if HERE in item.path.parents):
        marker = item.get_closest_marker("needs_cuda")
        if REHEARSING and marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"not in a rehearsal: {marker.args[0]}"))
        elif not REHEARSING and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=f"no GPU; {VARIABLE}=rehearse runs this on CPUs"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the tests have measured."""
    reports = [
        report for each in terminalreporter.stats.values() for report in each if getattr(report, "when", "") == "call"
    ]
    measured = [(report.nodeid.split("::")[-1], *pair) for report in reports for pair in report.user_properties]
    if measured:
        terminalreporter.section("measured")
    for test, name, value in measured:
        terminalreporter.write_line(f"{test}: {name} {value}")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if REHEARSING else "cuda")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of processes that tests start."""
    path = os.pathsep.join((str(jobs.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])))
    ours = {**jobs.environment(), "PYTHONPATH": path}
    if REHEARSING:
        return ours
    # without the workspaces cuBLAS refuses to be deterministic
    return {**ours, "DS_ACCELERATOR": "cuda", "OMP_NUM_THREADS": "4", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.fixture(scope="session", autouse=True)
def started(request: pytest.FixtureRequest) -> None:
    """Trains beside the tests that do not wait for it."""
    if names_of(request.session.items):
        request.getfixturevalue("runs")


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[Callable[[str], Run]]:
    """Gives the run of a case; all that the chosen tests ask for are started at once."""
    directory = tmp_path_factory.mktemp("gpu")
    prepare(directory)
    names = names_of(request.session.items)
    parts = [names] if REHEARSING else [[n for n in names if CASES[n].is_slow is slow] for slow in (False, True)]
    processes = [Process(directory, part, environment) for part in parts if part]

    def get(name: str) -> Run:
        (process,) = (process for process in processes if name in process.asked)
        found = process.result(name)
        if "problem" in found:
            pytest.fail(f"{name}: {found['problem']}", pytrace=False)
        config = last_config(directory, name)
        return Run(config, directory / "runs" / name, found, directory / "weights" / config.objective.kind)

    yield get
    for process in processes:
        process.end()


def prepare(directory: Path) -> None:
    """Shards, configurations and weights for `run_cases`."""
    patience: dict[str, object] = {} if REHEARSING else {"step_timeout_seconds": 60.0, "long_timeout_seconds": 120.0}
    common: dict[str, dict[str, object]] = {"schedule": {"kind": "constant", "warmup_steps": 1}, "faults": patience}
    small = {"global_batch_size": 8, "micro_batch_size": 4}
    words = write_tokens(directory / "data" / "words", 256, (LENGTH, LENGTH))
    ragged = write_tokens(directory / "data" / "ragged", 256, (LENGTH // 3, LENGTH - 1))
    for name, data in {"words": words, "ragged": ragged}.items():
        jobs.write_config(directory / f"{name}.yaml", data, model=MODEL, training=small, **common)
    length = LARGE_MODEL["max_seq_len"]
    long = write_tokens(directory / "data" / "long", 32, (length, length), LARGE_VOCABULARY)
    jobs.write_config(directory / "long.yaml", long, model=LARGE_MODEL, training=small, **common)
    for kind in KINDS:
        export(directory / "weights" / kind, kind, VOCABULARY, tokenizer=None, model=MODEL)
    (directory / "results").mkdir()


@pytest.fixture
def case(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> Run:
    """The run of the case that the test's parameter names."""
    return runs(request.param)


@pytest.fixture
def resumed(request: pytest.FixtureRequest, runs: Callable[[str], Run]) -> Run:
    """Likewise, of one that was stopped and resumed."""
    return runs(request.param)
