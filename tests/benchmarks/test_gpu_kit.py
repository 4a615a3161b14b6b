"""The runner of benchmarks/gpu.sh with small stages of its own, and the contents of the kit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.gpu import kit, report, run
from benchmarks.gpu.environment import KitError, make_environment
from benchmarks.gpu.machine import commit, gpus
from benchmarks.gpu.stage import ROOT
from benchmarks.gpu.stage_process import LOG, Stage, StageRun, keep_end

from .wheels import write_wheel

PREAMBLE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu import stage
record = stage.Record(stage.arguments("").output)
"""
ORDER = ["one", "two", "three"]


def small(name: str, code: str, seconds: float = 120) -> Stage:
    return Stage(name, ("-c", PREAMBLE + code), seconds)


def runner(directory: Path, commit: str = "abc") -> StageRun:
    for name in ("output", "work"):
        (directory / name).mkdir(exist_ok=True)
    common = {
        "rehearsal": True,
        "command": "bash benchmarks/gpu.sh",
        "commit": commit,
        "hardware": {"gpus": [], "processor": "x", "cores": 2, "memory_gib": 1.0},
        "versions": {"torch": "2.0"},
    }
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    for file in (directory / "work").iterdir():  # each use has a new one
        file.unlink()
    return StageRun(directory / "output", variables, directory / "work", common, ORDER)


def stored(directory: Path, name: str) -> report.Result:
    return json.loads((directory / "output" / f"{name}.json").read_text())


def values(result: report.Result) -> dict[str, object]:
    return {one["name"]: one["value"] for one in result["measurements"]}


def wait_for_end(pid: int) -> None:
    """A killed process may stay as a zombie where nothing reaps orphans."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(600):
        try:
            if status.read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} still runs")


def test_a_stage_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    failing = small("one", 'record.add("a", 1.5, "s", shape=[2, 3])\nprint("what went wrong")\nsys.exit(3)')
    good = small("two", 'record.add("b", 2, "s", headline=True)\nrecord.note("A sentence.")')
    results = run.run_stages([failing, good], runner(tmp_path), None, time.monotonic())
    assert [result["status"] for result in results] == ["failed", "passed"]
    first, second = stored(tmp_path, "one"), stored(tmp_path, "two")
    assert [first, second] == results
    assert (first["exit_status"], values(first)) == (3, {"a": 1.5})
    assert first["output_end"] == ["what went wrong"]
    assert first["measurements"][0]["shape"] == [2, 3]
    assert (second["exit_status"], values(second), second["notes"]) == (0, {"b": 2}, ["A sentence."])
    table = (tmp_path / "output" / report.TABLE).read_text()
    assert "| a | 1.5 | s | shape [2, 3] |" in table
    assert "| b | 2 | s |  |" in table
    assert "what went wrong" in table
    assert "what went wrong" in (tmp_path / "output" / LOG).read_text()
    assert "two: b: 2 s" in report.summary(results).splitlines()
    assert "one: a" not in report.summary(results)


def test_a_stage_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    result = runner(tmp_path).run(Stage("one", ("-m", "benchmarks.gpu.no_such_stage"), 60), 60)
    assert result["status"] == "failed"
    assert "benchmarks.gpu.no_such_stage" in result["output_end"][-1]


def test_the_time_limit_kills_a_stage_and_its_children(tmp_path: Path) -> None:
    code = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
record.add("child", child.pid, "")
record.add("own", os.getpid(), "")
time.sleep(3600)
"""
    result = runner(tmp_path).run(small("one", code), 15)
    assert (result["status"], result["exit_status"]) == ("timed out", -signal.SIGKILL)
    assert result == stored(tmp_path, "one")
    assert values(result).keys() == {"child", "own"}
    for pid in values(result).values():
        wait_for_end(int(str(pid)))


def test_what_a_stage_leaves_behind_is_killed(tmp_path: Path) -> None:
    code = 'record.add("child", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]).pid, "")'
    result = runner(tmp_path).run(small("one", code), 120)
    assert result["status"] == "passed"
    wait_for_end(int(str(values(result)["child"])))


def test_a_stage_that_is_killed_keeps_what_it_measured(tmp_path: Path) -> None:
    code = (
        'record.add("a", 1, "")\nrecord.add("b", 2, "")\nos.kill(os.getpid(), signal.SIGKILL)\nrecord.add("c", 3, "")'
    )
    result = runner(tmp_path).run(small("one", code), 120)
    assert (result["status"], result["exit_status"]) == ("failed", -signal.SIGKILL)
    assert values(stored(tmp_path, "one")) == {"a": 1, "b": 2}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, "interrupted"), (signal.SIGKILL, "unfinished")])
def test_a_use_that_is_killed_leaves_its_results(tmp_path: Path, number: signal.Signals, status: str) -> None:
    hanging = small("one", 'record.add("own", os.getpid(), "")\ntime.sleep(3600)')
    use = f"""
import signal, time
from pathlib import Path
from benchmarks.gpu import run
from tests.benchmarks.test_gpu_kit import Stage, runner
signal.signal(signal.SIGTERM, run.interrupt)
results = run.run_stages([{hanging!r}], runner(Path({str(tmp_path)!r})), None, time.monotonic())
print([result["status"] for result in results])
"""
    process = subprocess.Popen([sys.executable, "-c", use], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    file = tmp_path / "output" / "one.json"
    for _ in range(6000):
        assert process.poll() is None
        if file.exists() and stored(tmp_path, "one")["measurements"]:
            break
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate()
    result = stored(tmp_path, "one")
    pid = int(str(values(result)["own"]))
    if number == signal.SIGKILL:  # nobody is left to kill the stage
        os.killpg(pid, signal.SIGKILL)
    else:
        assert output == "['interrupted']\n"
    wait_for_end(pid)
    assert result["status"] == status


def test_a_later_use_keeps_what_it_did_not_measure(tmp_path: Path) -> None:
    stages = [small("one", 'record.add("a", 1, "")'), small("two", 'record.add("b", 2, "")\nrecord.add("c", 3, "")')]
    run.run_stages(stages, runner(tmp_path, "first"), None, time.monotonic())
    untouched, earlier = stored(tmp_path, "one"), stored(tmp_path, "two")

    cut_off = small("two", 'record.add("b", 4, "")\nsys.exit(1)')
    run.run_stages([cut_off], runner(tmp_path, "second"), None, time.monotonic())
    again = stored(tmp_path, "two")
    assert stored(tmp_path, "one") == untouched
    assert (values(again), again["commit"], again["status"]) == ({"b": 4, "c": 3}, "second", "failed")
    assert ["earlier" in one for one in again["measurements"]] == [False, True]
    assert again["measurements"][1]["earlier"] == f"{earlier['date']}, commit first"
    table = (tmp_path / "output" / report.TABLE).read_text()
    assert [line for line in table.splitlines() if line.startswith("| a ")]
    assert table.index("## one") < table.index("## two")

    run.run_stages([cut_off], runner(tmp_path, "third"), None, time.monotonic())
    assert stored(tmp_path, "two")["measurements"][1] == again["measurements"][1]  # still of the first

    complete = small("two", 'record.add("b", 5, "")')
    run.run_stages([complete], runner(tmp_path, "fourth"), None, time.monotonic())
    assert values(stored(tmp_path, "two")) == {"b": 5}


def test_later_stages_get_the_time_that_is_left(tmp_path: Path) -> None:
    stages = [small("one", "", 60), small("two", "", 50)]
    now = time.monotonic()
    limits = [result["limit"] for result in run.run_stages(stages, runner(tmp_path), 100, now - 45)]
    assert limits[0] <= 55
    assert limits[1] < limits[0]
    results = run.run_stages(stages, runner(tmp_path), 100, time.monotonic() - 98)
    assert [result["status"] for result in results] == ["not started", "not started"]
    assert stored(tmp_path, "one")["status"] == "passed"  # what is there stays
    not_started = tmp_path / "another"
    not_started.mkdir()
    run.run_stages(stages, runner(not_started), 100, time.monotonic() - 98)
    assert stored(not_started, "two")["status"] == "not started"
    assert "not started" in (not_started / "output" / report.TABLE).read_text()


def test_more_time_than_the_limits_together_raises_them(tmp_path: Path) -> None:
    results = run.run_stages([small("one", "", 60), small("two", "", 20)], runner(tmp_path), 400, time.monotonic())
    assert [result["limit"] for result in results] == [300, 100]


def test_the_limits_leave_time_for_the_set_up_in_eight_minutes() -> None:
    assert sum(stage.seconds for stage in run.STAGES) + 10 <= run.TOTAL_SECONDS <= 480


def test_the_short_table_stays_short() -> None:
    many = [{"name": f"m{i}", "value": i, "unit": "s", "headline": True} for i in range(100)]
    result = {"stage": "one", "status": "passed", "seconds": 1.0, "measurements": many}
    lines = report.summary([result]).splitlines()
    assert len(lines) == report.MAX_LINES
    assert lines[-1].startswith(f"and {100 - (report.MAX_LINES - 3)} more")


def test_the_log_is_capped_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"before" + bytes(range(100)))
    keep_end(path, 6, 10)
    assert path.read_bytes() == b"before" + bytes(range(90, 100))
    keep_end(path, 0, 100)
    assert path.read_bytes() == b"before" + bytes(range(90, 100))


def test_the_commit_comes_from_the_kit_where_git_has_none(tmp_path: Path) -> None:
    assert commit(tmp_path, tmp_path) == "unknown"
    (tmp_path / "COMMIT").write_text("0123abc-dirty\n")
    assert commit(tmp_path, tmp_path) == "0123abc-dirty"
    tree = tmp_path / "tree"
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    assert commit(tree, tmp_path) == head
    (tree / "new").touch()
    assert commit(tree, tmp_path) == f"{head}-dirty"


def test_the_gpu_of_the_machine_stands_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04, 700.00 W'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = gpus()
    assert [(gpu["name"], gpu["driver_version"]) for gpu in found] == [("NVIDIA H100 80GB HBM3", "580.159.04")]
    use = runner(tmp_path)
    use.common["hardware"]["gpus"] = found
    use.common["rehearsal"] = False
    use.run(small("one", 'record.add("a|b", "x", "")'), 120)
    table = (tmp_path / "output" / report.TABLE).read_text()
    assert "NVIDIA H100 80GB HBM3 (driver 580.159.04), commit abc; torch 2.0" in table
    assert table.startswith("# Results on a GPU")
    assert "| a/b | x |  |  |" in table


def test_a_use_without_a_kit_or_gpu_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--kit", str(tmp_path / "kit"), "--output", str(tmp_path / "output")]
    monkeypatch.setenv("PATH", str(tmp_path))  # without nvidia-smi
    for there, named in ((False, "make gpu-kit"), (True, "--rehearse")):
        if there:
            (tmp_path / "kit" / "wheels").mkdir(parents=True)
        assert run.main(arguments) == 2
        message = capsys.readouterr().err
        assert named in message
        assert message.count("\n") == 1
    assert gpus() == []


def test_a_rehearsal_does_not_mix_with_results_of_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kit" / "wheels").mkdir(parents=True)
    (tmp_path / "facts.json").write_text(json.dumps({"stage": "facts", "rehearsal": False}))
    assert run.main(["--rehearse", "--kit", str(tmp_path / "kit"), "--output", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_environment_has_what_fits_and_then_what_is_installed(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "kit_probe")
    write_wheel(tmp_path / "wheels", "numpy", tag="cp27-none-any")
    variables, surrounding = make_environment(tmp_path / "wheels", tmp_path / "site", ROOT)
    assert surrounding == ["numpy"]
    code = """
import kit_probe
from importlib.util import find_spec
print(kit_probe.VALUE, find_spec("numpy").origin, find_spec("nar_scale").origin)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True
    )
    value, numpy, nar_scale = done.stdout.split()
    assert value == "7"
    assert not numpy.startswith(str(tmp_path))
    assert nar_scale == str(ROOT / "nar_scale" / "__init__.py")

    write_wheel(tmp_path / "wheels", "kit_absent", tag="cp27-none-any")
    with pytest.raises(KitError, match="kit-absent"):
        make_environment(tmp_path / "wheels", tmp_path / "again", ROOT)


def test_every_package_of_the_kit_is_pinned(tmp_path: Path) -> None:
    assert kit.pins(kit.WHEELS, ROOT / "constraints.txt").keys() == set(kit.WHEELS)
    (tmp_path / "constraints.txt").write_text("hjson==3.1.0\n")
    with pytest.raises(KitError, match="einx"):
        kit.pins(["hjson", "einx"], tmp_path / "constraints.txt")


def test_all_that_the_package_needs_is_in_the_kit_or_on_the_machine(tmp_path: Path) -> None:
    unmet = {canonicalize_name(Requirement(line.split(" (for")[0]).name) for line in kit.unmet(tmp_path)}
    assert {"deepspeed", "webdataset"} <= unmet <= set(kit.WHEELS)


def test_a_requirement_that_no_wheel_meets_is_named(tmp_path: Path) -> None:
    for name in kit.WHEELS:
        write_wheel(tmp_path, name.replace("-", "_"))  # version 1.0 of each
    too_old = [Requirement(line.split(" (for")[0]).name for line in kit.unmet(tmp_path)]
    assert too_old == ["deepspeed", "pydantic-core", "pydantic", "tenacity"]
    write_wheel(tmp_path, "kit_probe", ("kit-absent>=2", "torch", "kit-windows; sys_platform == 'win32'"))
    assert "kit-absent>=2 (for kit_probe)" in kit.unmet(tmp_path)
    assert not [line for line in kit.unmet(tmp_path) if line.startswith(("torch", "kit-windows"))]


def test_the_data_set_is_the_same_each_time(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        assert kit.gather_data(tmp_path / name, documents=20, seq_len=256)
        assert not kit.gather_data(tmp_path / name, documents=20, seq_len=256)
        tars = sorted((tmp_path / name).rglob("*.tar"))
        assert [path.parent.name for path in tars] == ["train", "validation"]
        contents.append([path.read_bytes() for path in tars])
    assert contents[0] == contents[1]
    assert kit.gather_data(tmp_path / "one", documents=21, seq_len=256)  # another is wanted now
