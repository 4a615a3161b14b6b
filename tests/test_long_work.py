"""All long work, command by command: a bar with rate and time left on a terminal, and what Ctrl-C leaves behind."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tqdm import tqdm

from nar_scale.checkpoint import store
from nar_scale.commands import consolidate, evaluate, export, generate, harness, prepare
from nar_scale.commands.console import COMMANDS
from tests.checkpoint.test_consolidated import finished_run
from tests.data.preparation.preparing import made, write_tokenizer
from tests.distributed.jobs import environment, write_config
from tests.errors import assert_names
from tests.generation.helpers import export as exported
from tests.generation.helpers import export_with_tokenizer
from tests.interop.test_lm_eval import QUESTIONS
from tests.terminal import standard_error_on_a_terminal, terminal

PACKAGE = Path(__file__).parents[1] / "nar_scale"
BAR = r"{}: .*\d.*\[.*<.*{}/s"  # elapsed < left, and a rate
SHORT = {  # that show none
    "init": "copies a file",
    "plan": "computes sizes",
    "doctor": "asks the machine",
    "report": "reads the metrics of runs",
    "prepare digits": "1,797 images",
}
NO_COMMAND = {"generate.request"}  # of Python's interface to the harness, whose tasks here score


@dataclass(frozen=True)
class Job:
    """A command with long work.

    Attributes:
        command: of the console, with its subcommand.
        bars: by name, what each counts.
        arguments: of a directory with inputs, and of one to write to.
        kept: what Ctrl-C in each bar has to name: the thing that was not written, or "kept"; None where a test of its
            own looks at that.
        other_bars: whether libraries have bars too, which must be told so before they are imported.
    """

    command: str
    bars: dict[str, str]
    arguments: Callable[[Path, Path], Sequence[object]]
    kept: Callable[[Path], object] | None
    other_bars: bool = False


def likelihood(given, to, *more):
    return ["--data", given / "data", "--limit", 8, *more]


REPORT = ("--report", "--samples", 2, "--steps", 2, "--temperatures", 1, "--training-samples", 8)
EXPORT = {"verify": "B", "write model": "B"}
JOBS = {
    "corpus": Job(
        "prepare corpus",
        {"prepare": "B", "merge": "shard"},
        lambda given, to: ["corpus", given / "texts", "--output", to / "data", *CORPUS],
        lambda to: to / "data",
    ),
    "part": Job(
        "prepare corpus",
        {"prepare": "B"},
        lambda given, to: ["corpus", given / "texts", "--output", to / "data", *CORPUS, "--part", "1/2"],
        lambda to: to / "data",
    ),
    "tokenizer": Job(
        "prepare tokenizer",
        {"read": "B"},
        lambda given, to: ["tokenizer", given / "texts", "--output", to / "t.json", "--vocabulary-size", 300],
        lambda to: to / "t.json",
    ),
    "inspect": Job(
        "prepare inspect",
        {"index": "shard"},
        lambda given, to: ["inspect", given / "bare", "--index-directory", to],
        lambda to: "kept",
    ),
    "index": Job(
        "prepare index",
        {"index": "shard"},
        lambda given, to: ["index", given / "bare", "--index-directory", to, "--workers", 1],
        lambda to: "kept",
    ),
    "verify": Job(
        "prepare verify",
        {"verify": "B"},
        lambda given, to: ["verify", given / "data", "--workers", 1],
        lambda to: "data",
    ),
    "consolidate": Job(
        "consolidate",
        {**EXPORT, "checksums": "file"},
        lambda given, to: ["--run", given / "run", "--output", to / "model"],
        lambda to: to / "model",
    ),
    "evaluate": Job(
        "evaluate",
        {"verify": "B", "evaluate": "batch"},
        lambda given, to: ["--checkpoint", given / "ar", *likelihood(given, to), "--output", to / "x.json"],
        lambda to: "written",
    ),
    "evaluate --report": Job(
        "evaluate",
        {"evaluate": "batch", "look words up": "part", "samples": "setting", "score": "setting"},
        lambda given, to: ["--checkpoint", given / "ar", *likelihood(given, to), *REPORT[:1], to / "r", *REPORT[1:]],
        lambda to: "written",
    ),
    "evaluate --report, another tokenizer": Job(
        "evaluate",
        {"evaluate": "B"},
        lambda given, to: [
            *("--checkpoint", given / "other", *likelihood(given, to), *REPORT[:1], to / "r", "--samples", 0),
        ],
        lambda to: "written",
    ),
    "generate": Job(
        "generate",
        {"verify": "B", "generate": "part"},
        lambda given, to: [
            *("--checkpoint", given / "ar", "--output", to / "samples", "--num-samples", 3, "--part-size", 1),
        ],
        None,  # tests/generation/test_stop.py
    ),
    "harness": Job(
        "harness",
        {"verify": "B", "score": "request"},
        lambda given, to: [
            *("--checkpoint", given / "ar", "--tasks", "arc_easy", "--data-files", f"test={given / 'questions.jsonl'}"),
            *("--output", to / "x.json"),
        ],
        lambda to: to / "x.json",
        other_bars=True,
    ),
    "export llama": Job(
        "export",
        EXPORT,
        lambda given, to: ["--checkpoint", given / "ar", "--format", "llama", "--output", to / "llama"],
        lambda to: to / "llama",
    ),
    "export x-transformers": Job(
        "export",
        EXPORT,
        lambda given, to: [
            *("--checkpoint", given / "ar", "--format", "x-transformers", "--output", to / "x", "--ignore-norm-eps"),
        ],
        lambda to: to / "x",
    ),
    "import": Job(
        "import",
        {"write model": "B"},
        lambda given, to: ["--format", "llama", given / "llama", "--output", to / "model"],
        lambda to: to / "model",
    ),
}
CORPUS = ("--seq-len", 24, "--workers", 1, "--validation", 0.4, "--unit-bytes", 1000)
RUN = {
    "prepare": prepare.main,
    "consolidate": consolidate.main,
    "evaluate": evaluate.main,
    "generate": generate.main,
    "harness": harness.main,
    "export": export.main,
    "import": importlib.import_module("nar_scale.commands.import_").main,
}
INTERRUPTED = [(name, bar) for name, job in JOBS.items() if job.kept is not None for bar in job.bars]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    (root / "texts").mkdir()
    for number in range(12):
        (root / "texts" / f"{number}.txt").write_text(f"{number} words " * 40)
    made(root / "texts", root / "data", seq_len=24, validation=0.4)
    made(root / "texts", root / "bare", seq_len=24, validation=0.4)
    for index in root.glob("bare/*/*"):
        if index.suffix != ".tar":
            index.unlink()
    exported(root / "ar", "autoregressive")
    write_tokenizer(root / "t.json")
    export_with_tokenizer(root / "other", root / "t.json")
    finished_run(root / "run", steps=(10,))
    RUN["export"](["--checkpoint", str(root / "ar"), "--format", "llama", "--output", str(root / "llama")])
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return root


@pytest.fixture(autouse=True)
def at_once(monkeypatch, tmp_path):
    """Bars of what takes no second are shown as well."""
    monkeypatch.setattr(store, "BAR_DELAY", 0.0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def arguments_of(job, given, to):
    to.mkdir(exist_ok=True)
    return [str(each) for each in job.arguments(given, to)]


def run(job, given, to):
    return RUN[job.command.split()[0]](arguments_of(job, given, to))


def run_alone(job, given, to):
    command = [sys.executable, "-m", "nar_scale.commands.console", job.command.split()[0]]
    cache = {"HF_DATASETS_CACHE": str(to / "datasets")}
    done = subprocess.run([*command, *arguments_of(job, given, to)], capture_output=True, env=environment() | cache)
    return done.returncode, (done.stdout + done.stderr).decode()


def shown(written, bar, unit):
    return any(re.search(BAR.format(re.escape(bar), unit), picture) for picture in re.split(r"[\r\n]", written))


@pytest.mark.parametrize("name", JOBS)
def test_bars_are_shown_on_a_terminal_alone(given, name, tmp_path, monkeypatch, capfd):
    job = JOBS[name]
    with standard_error_on_a_terminal(monkeypatch) as seen:
        assert run(job, given, tmp_path / "first") == 0
    assert [bar for bar, unit in job.bars.items() if not shown(seen[-1], bar, unit)] == [], seen[-1]
    capfd.readouterr()
    if job.other_bars:
        status, written = run_alone(job, given, tmp_path / "again")
    else:
        status, written = run(job, given, tmp_path / "again"), "".join(capfd.readouterr())
    assert status == 0, written
    assert not re.search(r"\r|/s\]", written), written


class Interrupted(tqdm):
    """A bar whose first step is Ctrl-C, if it has the name that is asked for."""

    bar = ""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.name = options["desc"]

    def update(self, n=1):
        if self.name == Interrupted.bar:
            raise KeyboardInterrupt
        return super().update(n)


@pytest.mark.parametrize(("name", "bar"), INTERRUPTED)
def test_ctrl_c_says_what_is_left(given, name, bar, tmp_path, monkeypatch):
    job = JOBS[name]
    monkeypatch.setattr("nar_scale.progress.tqdm", Interrupted)
    monkeypatch.setattr(Interrupted, "bar", bar)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(job, given, tmp_path / "first")
    assert_names(str(caught.value), job.kept(tmp_path / "first"))
    monkeypatch.setattr(Interrupted, "bar", "")
    assert run(job, given, tmp_path / "first") == 0  # the same command again


def test_training_shows_a_bar_on_a_terminal_and_lines_elsewhere(given, tmp_path):
    config = write_config(tmp_path / "c.yaml", given / "data", model={"max_seq_len": 24}, logging={"every": 1})
    command = [sys.executable, "-m", "nar_scale.commands.console", "train", "--config", str(config)]
    with terminal() as (descriptor, seen):
        first = [*command, f"training.run_directory={tmp_path / 'first'}"]
        done = subprocess.run(first, stdout=subprocess.PIPE, stderr=descriptor, env=environment(), text=True)
    assert done.returncode == 0, done.stdout + seen[0]
    assert re.search(r"6/6 \[\d.*<.*step/s", seen[0]), seen[0]
    again = [*command, f"training.run_directory={tmp_path / 'again'}"]
    silent = subprocess.run(again, capture_output=True, env=environment(), text=True, check=True)
    assert "\r" not in silent.stdout + silent.stderr
    assert re.search(r"^step 6/6, ", silent.stdout, flags=re.MULTILINE)


def bars_in(package):
    """Names of all bars in a package, and what each counts, as `name.unit`."""
    for module in package.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            called = getattr(getattr(node, "func", None), "id", None)
            if called in ("progress_bar", "with_progress") and module.name != "progress.py":
                place = 0 if called == "progress_bar" else 1
                name, unit = node.args[place], node.args[2]
                texts = [part.value for part in getattr(name, "values", [name]) if isinstance(part, ast.Constant)]
                yield f"{''.join(texts).strip()}.{unit.value}"


def test_every_bar_is_among_those_of_the_jobs():
    known = {f"{name.removesuffix(' model')}.{unit}" for job in JOBS.values() for name, unit in job.bars.items()}
    assert set(bars_in(PACKAGE)) == known | NO_COMMAND


def test_every_command_is_a_job_or_short():
    subcommands = re.findall(
        r'^ +\(?"(\w+)", (?:help=)?"', (PACKAGE / "commands/prepare/subcommands.py").read_text(), re.M
    )
    commands = {*COMMANDS, *(f"prepare {name}" for name in subcommands)} - {"prepare", "train"}
    assert len(subcommands) == 6
    assert {job.command for job in JOBS.values()} | set(SHORT) == commands
