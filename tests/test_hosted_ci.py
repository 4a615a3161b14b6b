"""Makefile, hosted CI, commit hooks, `constraints.txt` and `pyproject.toml` say the same, each in its own words."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib")

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())
UNPINNED = ("setuptools",)  # torch bounds it: 2.11 to releases before 82
TARGETS = ("help", "install", "demo", "test", "check", "format", "structure", "bench", "gpu-kit", "clean")


def requirements():
    """Those of the package and of its extras, without the extras' own names."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != PROJECT["name"]]


def pins():
    lines = (line.partition("#")[0].strip() for line in (REPOSITORY / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(None, lines))}


def version_of(requirement):
    (specifier,) = requirement.specifier
    return Version(specifier.version)


def make(*arguments):
    # as from a shell: `make test` hands its own flags on
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    result = subprocess.run(["make", *arguments], cwd=REPOSITORY, env=alone, capture_output=True, text=True, check=True)
    return result.stdout


def commands(job):
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_every_pin_is_within_the_range_of_the_package():
    pinned = pins()
    for requirement in requirements():
        if requirement.name in UNPINNED:
            assert requirement.name not in pinned
            continue
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(version_of(pin), prereleases=True), f"{pin} is not in {requirement}"


def test_the_matrix_has_the_oldest_and_the_newest_torch_of_the_range():
    torch = next(each for each in requirements() if each.name == "torch").specifier
    tested = [
        SpecifierSet(text.removeprefix("torch")) for text in WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["torch"]
    ]
    oldest, newest = (Version(next(iter(each)).version) for each in tested)
    bounds = {each.operator: Version(each.version) for each in torch}
    assert oldest.release[:2] == bounds[">="].release[:2]
    assert newest.release[:2] == (bounds["<"].major, bounds["<"].minor - 1)
    assert oldest in torch
    assert newest in torch
    assert oldest <= version_of(pins()["torch"]) <= newest


def test_the_matrix_has_every_python_from_the_oldest_on():
    pythons = [Version(text) for text in WORKFLOW["jobs"]["test"]["strategy"]["matrix"]["python"]]
    assert pythons[0] == Version(next(iter(SpecifierSet(PROJECT["requires-python"]))).version)
    assert [each.minor for each in pythons] == list(range(pythons[0].minor, pythons[-1].minor + 1))


def test_hosted_and_local_ci_call_the_same_targets():
    local = re.findall(r"^make (\S+)$", (REPOSITORY / ".ci" / "run").read_text(), flags=re.MULTILINE)
    hosted = [
        command.split()[1] for job in WORKFLOW["jobs"] for command in commands(job) if command.startswith("make ")
    ]
    assert set(local) == set(hosted) - {"install"}
    torch = re.search(r"^TORCH \?= (\S+)$", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)[1]
    assert WORKFLOW["jobs"]["check"]["env"]["TORCH"].split()[0] == torch == str(pins()["torch"])


def test_hooks_run_the_tools_of_the_environment():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}
    entries = [hook["entry"].split() for repository in hooks for hook in repository["hooks"]]
    assert [entry[0] for entry in entries] == [".venv/bin/ruff", ".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/python"]
    checked = make("--dry-run", "check")
    assert all(f".venv/bin/{tool}" in checked for tool in ("ruff format", "ruff check", "mypy", "shellcheck"))


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_alone_lists_every_target_with_a_sentence():
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in make().splitlines()[1:]}
    assert set(TARGETS) <= set(listed)
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    assert set(listed) == set(phony)
    assert all(len(text.split()) > 1 for text in listed.values())
