"""Every mistake of the tables ends with status 2 and one line, and leaves nothing behind."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from . import checkpoints, data_sets, generation, machine, settings
from .mistake import Mistake
from .run_all import run_all

MISTAKES = {
    **settings.MISTAKES,
    **data_sets.MISTAKES,
    **checkpoints.MISTAKES,
    **generation.MISTAKES,
    **machine.MISTAKES,
}
TIMEOUT = 1500
PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
TOLD = re.findall(r"^\| `(.+?)` \| .+ \|$", PAGE.read_text(), re.MULTILINE)

CONFIG = """
model: {dim: 32, depth: 2, heads: 2, max_seq_len: 32}
objective: {kind: non_autoregressive}
data: {directory: data, validation: ""}
optimizer: {learning_rate: 3e-3}
schedule: {warmup_steps: 0}
training: {steps: 2, global_batch_size: 6, micro_batch_size: 2, precision: fp32, run_directory: new}
"""
WORLD = (
    "prepare --input corpus --output data --seq-len 32 --validation 0.2 --samples-per-shard 200",
    "train --config small.yaml training.run_directory=run",
    "train --config small.yaml training.run_directory=ar_run objective.kind=autoregressive",
    "consolidate --run run --output nar",
    "consolidate --run ar_run --output ar",
)
SHARED = ("data", "run", "ar_run", "nar", "ar", "corpus")


class Answer(NamedTuple):
    status: int
    output: str
    left_behind: list[str]


def contents(here: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of everything below a directory, links not followed."""
    found = {}
    for folder, folders, files in os.walk(here):
        for path in (Path(folder, name) for name in (*folders, *files)):
            status = path.lstat()
            changed = 0 if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
            found[str(path.relative_to(here))] = (status.st_size if changed else 0, changed)
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """The answer to each mistake."""
    world = tmp_path_factory.mktemp("world")
    (world / "small.yaml").write_text(CONFIG)
    (world / "corpus").mkdir()
    for number in range(40):
        (world / "corpus" / f"{number}.txt").write_text(f"text {number} of forty; " * 20)
    for command, (status, output) in zip(WORLD, run_all([(each, world, {}) for each in WORLD], world, TIMEOUT)):
        assert status == 0, f"{command}: {output}"
    places, before = [], []
    shared = contents(world)
    for number, mistake in enumerate(MISTAKES.values()):
        here = tmp_path_factory.mktemp(f"mistake{number}-")
        (here / "small.yaml").write_text(CONFIG)
        for name in SHARED:
            (here / name).symlink_to(world / name)
        if mistake.prepare is not None:
            mistake.prepare(here)
        places.append(here)
        before.append(contents(here))
    results = run_all(
        [(each.command, here, dict(each.environment)) for each, here in zip(MISTAKES.values(), places)],
        world,
        TIMEOUT,
    )
    found = {}
    for name, here, there, (status, output) in zip(MISTAKES, places, before, results):
        after = contents(here)
        left_behind = sorted(path for path in {*there, *after} if there.get(path) != after.get(path))
        found[name] = Answer(status, output.replace(str(here), "."), left_behind)
    assert contents(world) == shared
    return found


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_by_one_line(answers: dict[str, Answer], name: str) -> None:
    status, output, left_behind = answers[name]
    lines = [line for line in output.splitlines() if line.strip()]
    assert "Traceback" not in output
    assert status == 2, output
    assert len(lines) == 1, output
    answer = lines[0]
    missing = [each for each in MISTAKES[name].named if not re.search(rf"(?<!\w){re.escape(each)}(?!\w)", answer)]
    assert not missing, f"{answer!r} does not name {missing}"
    assert left_behind == []


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("message", TOLD)
def test_a_message_of_the_troubleshooting_page_is_the_answer_to_a_mistake(
    answers: dict[str, Answer], message: str
) -> None:
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert any(re.search(pattern, answer.output) for answer in answers.values())


def test_there_are_many() -> None:
    assert len(TOLD) >= 30
    assert len(MISTAKES) >= 120
    assert all(isinstance(each, Mistake) and each.named for each in MISTAKES.values())
