"""The scripts check their arguments before they import what takes seconds."""

import ast
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import get_args

import pytest

from nar_scale.checkpoint import WeightKind
from nar_scale.commands.console import COMMANDS
from nar_scale.commands.process import exit_status as command
from nar_scale.first_rank import seconds_after_first_rank
from tests.errors import assert_names

LAUNCHER = Path(__file__).parents[1] / "launcher"
PROCESS = LAUNCHER.parent / "nar_scale" / "commands" / "process.py"
SCRIPTS = sorted(path.stem for path in LAUNCHER.glob("[!_]*.py"))
# runs a script with arguments that end it at once, and prints which libraries that has loaded
LOADED = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[0]))
os._exit = sys.exit  # by which `train` ends
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    loaded = {name.split(".")[0] for name in sys.modules}
    print("loaded:", *sorted(loaded & {"torch", "numpy", "pydantic", "deepspeed"}))
"""


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["--no-such-option"], 2)])
@pytest.mark.parametrize("script", SCRIPTS)
def test_arguments_are_checked_before_torch_is_imported(script, arguments, status):
    path = str(LAUNCHER / f"{script}.py")
    code = f"import sys; sys.argv = {[path, *arguments]!r}\n{LOADED}"
    result = run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == status, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded:"
    if status:
        assert "--no-such-option" in result.stderr or "required" in result.stderr


def choices_of(script, option):
    """What a script's help says an option takes."""
    help_text = run([sys.executable, str(LAUNCHER / f"{script}.py"), "--help"], capture_output=True, text=True).stdout
    return help_text.split(f"--{option} {{")[1].split("}")[0].split(",")


@pytest.mark.parametrize(
    ("script", "option", "kind"),
    [
        ("generate", "weights", WeightKind),
        ("evaluate", "weights", WeightKind),
        ("export", "weights", WeightKind),
        ("harness", "weights", WeightKind),
    ],
)
def test_choices_are_those_of_the_library(script, option, kind):
    assert tuple(choices_of(script, option)) == get_args(kind)


def test_the_scripts_are_commands_of_the_console():
    assert sorted(COMMANDS) == SCRIPTS


def console(*arguments):
    """Run the command that `pip install` puts beside Python."""
    return start(str(Path(sys.executable).with_name("nar-scale")), *arguments)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_console_runs_the_same_code(script):
    shown = console(script, "--help")
    assert shown.stdout.startswith(f"usage: nar-scale {script} ")
    of_script = run([sys.executable, str(LAUNCHER / f"{script}.py"), "--help"], capture_output=True, text=True).stdout
    assert shown.stdout.split()[3:] == of_script.split()[2:]  # but for the name, which decides where lines are broken


def test_the_console_helps_and_tells_its_version():
    assert all(f"\n  {name} " in console("--help").stdout for name in COMMANDS)
    assert console("--version").stdout == f"nar_scale {version('nar_scale')}\n"
    wrong = console("tarin")
    assert wrong.returncode == 2
    assert_names(wrong.stderr.splitlines()[-1], "tarin", "train")


def test_the_console_tells_an_error_of_a_command_in_one_line():
    assert_one_line(console("train", "--config", "nowhere.yaml"), "train", "nowhere.yaml")


def test_the_package_is_imported_in_no_time():
    code = "import sys, nar_scale; print(nar_scale.__version__); assert 'torch' not in sys.modules"
    code += "; print(nar_scale.load, dir(nar_scale))"
    result = start("-c", code)
    assert result.stdout.startswith(f"{version('nar_scale')}\n<function load at ")
    assert "NonAutoregressiveWrapper" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_errors_begin_with_the_name_of_the_command_however_it_is_started(script):
    by_console = console(script, "--no-such-option")
    by_script = start(str(LAUNCHER / f"{script}.py"), "--no-such-option")
    assert by_console.returncode == by_script.returncode == 2
    assert by_console.stderr == by_script.stderr
    assert by_console.stderr.startswith(f"{script}: error: ")
    assert by_console.stderr.count("\n") == 1


def start(*command: str, **environment: str) -> "CompletedProcess[str]":
    """Start Python without the path to this repository."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run(
        [sys.executable, *command], env={**inherited, **environment}, capture_output=True, text=True, timeout=120
    )


def assert_one_line(result: "CompletedProcess[str]", *named: str) -> None:
    assert result.returncode == 2, result.stderr
    assert_names(result.stderr.removesuffix("\n"), *named)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_old_python_is_told_so(script):
    path = LAUNCHER / f"{script}.py"
    for source in (path, LAUNCHER / "_command.py", PROCESS, LAUNCHER.parent / "nar_scale" / "first_rank.py"):
        ast.parse(source.read_text(), feature_version=(3, 9))
    code = f"import sys; sys.argv = {[str(path)]!r}; sys.version_info = (3, 9, 18)\n{LOADED}"
    result = start("-c", code)
    assert_one_line(result, script, "3.9", "3.10", sys.executable)
    assert result.stdout == "loaded:\n"  # and nothing that an old Python could not read


VALID = {
    "init": ["x"],
    "prepare": ["--verify", "x"],
    "train": ["--config", "x"],
    "plan": ["--config", "x", "--devices", "8"],
    "doctor": [],
    "consolidate": ["--run", "x", "--output", "x"],
    "evaluate": ["--checkpoint", "x", "--data", "x", "--output", "x"],
    "generate": ["--checkpoint", "x", "--num-samples", "1", "--output", "x"],
    "report": ["--run", "x"],
    "harness": ["--checkpoint", "x", "--tasks", "x", "--output", "x"],
    "export": ["--checkpoint", "x", "--format", "llama", "--output", "x"],
    "import": ["x", "--format", "llama", "--output", "x"],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_python_of_the_system_is_told_what_it_lacks(script):
    result = start("-S", str(LAUNCHER / f"{script}.py"), *VALID[script])
    assert_one_line(result, script, "nar_scale", sys.executable, "use")


@pytest.mark.parametrize("script", sorted({*SCRIPTS} - {"train"}))
def test_tasks_that_are_no_ranks_of_a_job_tell_at_once_what_is_wrong(script):
    start_time = time.monotonic()
    task = {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "RANK": "3"}
    result = start("-S", str(LAUNCHER / f"{script}.py"), *VALID[script], **task)
    assert_one_line(result, script, "nar_scale")
    assert time.monotonic() - start_time < seconds_after_first_rank(task) / 2


@pytest.mark.parametrize("module", ["deepspeed", "tensorboard"])
def test_a_module_that_is_missing_is_named(tmp_path, module):
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{module!r}] = None")
    path = f"{tmp_path}{os.pathsep}{LAUNCHER.parent}"
    result = start(str(LAUNCHER / "train.py"), "--config", "nowhere.yaml", PYTHONPATH=path)
    assert_one_line(result, "train", module, sys.executable)


def test_a_file_that_cannot_be_read_is_named(capsys):
    def fail():
        open("/nowhere/file").close()

    assert command(fail) == 2
    assert_names(capsys.readouterr().err.removesuffix("\n"), "/nowhere/file")
