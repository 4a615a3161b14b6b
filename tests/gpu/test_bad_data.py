"""Data that does not fit the model: one line that names it, and no traceback of the device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from nar_scale.objectives import NonAutoregressiveWrapper
from tests.distributed import jobs

from .corpora import LENGTH, VOCABULARY, random_tokens, write_shard
from .runs import RecordProperty

pytestmark = pytest.mark.timeout(900)
CLASSES = 3
BAD = 5  # of eight samples, all in the first step


class Problem(NamedTuple):
    """What is wrong with a sample, and what is said of it."""

    settings: tuple[str, ...]
    token: int | None
    label: int
    said: str


_CONDITIONAL = (f"objective.num_classes={CLASSES}", "data.class_field=cls")
PROBLEMS = {
    "the mask id": Problem((), VOCABULARY, 0, f"token {VOCABULARY} is outside the vocabulary of {VOCABULARY}"),
    "a token beyond the vocabulary": Problem(
        ("objective.kind=autoregressive",), 9999, 0, f"token 9999 is outside the vocabulary of {VOCABULARY}"
    ),
    "a class out of range": Problem(_CONDITIONAL, None, CLASSES, f"class {CLASSES} is outside 0..{CLASSES - 1}"),
    "a class below 0": Problem(_CONDITIONAL, None, -1, f"class -1 is outside 0..{CLASSES - 1}"),
}


def write_problem(directory: Path, problem: Problem) -> Path:
    samples: list[dict[str, Any]] = [
        {"tokens.npy": tokens, "cls": str(number % CLASSES)}
        for number, tokens in enumerate(random_tokens(8, (LENGTH, LENGTH)))
    ]
    if problem.token is not None:
        samples[BAD]["tokens.npy"][7] = problem.token
    else:
        samples[BAD]["cls"] = str(problem.label)
    return write_shard(directory, samples, LENGTH, VOCABULARY)


REFUSED = {"mask": "the data contains the mask id 10", "class": "a class is outside 0..2"}
SCRIPT = "from tests.gpu.test_bad_data import refused; refused({name!r}, {device!r})"


@pytest.fixture(scope="module")
def launches(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], device: torch.device
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Each in a process of its own, all at once: an assertion on a GPU leaves it of no use to the process."""
    started = {}
    for number, (name, problem) in enumerate(PROBLEMS.items()):
        directory = tmp_path_factory.mktemp(f"problem{number}")
        data = write_problem(directory / "data", problem)
        config = jobs.write_config(directory / "run.yaml", data, model={"max_seq_len": LENGTH})
        settings = (*problem.settings, "data.loader_workers=1", f"training.run_directory={directory / 'run'}")
        started[name] = start([str(jobs.TRAIN), "--config", str(config), *settings], environment)
    for name in REFUSED:
        started[name] = start(["-c", SCRIPT.format(name=name, device=device.type)], environment)
    yield started
    for process in started.values():
        if process.poll() is None:
            jobs.kill(process)


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=jobs.REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_run_ends_with_one_line_that_names_the_sample(
    launches: dict[str, subprocess.Popen[str]], name: str, record_property: RecordProperty
) -> None:
    output, errors = launches[name].communicate()
    assert launches[name].returncode == 2, output + errors
    (line,) = (line for line in errors.splitlines() if line.startswith("train: error: "))
    record_property("other lines", [other[:200] for other in errors.splitlines() if other != line])
    assert "Traceback" not in output + errors
    assert "device-side assert" not in output + errors
    assert f"sample {BAD:09d}" in line
    assert PROBLEMS[name].said in line


def refused(name: str, device: str) -> None:
    """Give a model of the library's users what it cannot take, and print the error."""
    from tests.objectives.helpers import random_tokens, small_nar

    wrapper: NonAutoregressiveWrapper = small_nar(num_classes=CLASSES).to(device)
    tokens = random_tokens(2, 12).to(device)
    classes = torch.tensor([0, CLASSES if name == "class" else 1], device=device)
    if name == "mask":
        tokens[1, 3] = wrapper.mask_id
    try:
        wrapper(tokens, classes=classes)
        if device == "cuda":
            torch.cuda.synchronize()  # where it was not waited for, it is heard of now
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(3)  # without asking the device to clean up, which it no longer does


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_by_itself_says_so_too(launches: dict[str, subprocess.Popen[str]], name: str) -> None:
    """On a GPU by an assertion of the device, whose message the driver prints: asking would make every step wait."""
    output, errors = launches[name].communicate()
    assert launches[name].returncode == 3, output + errors
    assert REFUSED[name] in errors
