"""What `pip install` installs: built, installed with what it asks for alone, and used away from the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nar_scale.checkpoint import TrainingState
from nar_scale.commands.console import COMMANDS

REPOSITORY = Path(__file__).parents[1]
CONFIGS = {f"nar_scale/configs/{path.name}" for path in (REPOSITORY / "configs").iterdir()}
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"
SMALL = (
    *("model.max_seq_len=32", "model.dim=32", "model.depth=1", "model.heads=2", "optimizer.kind=adamw"),
    *("training.steps=4", "schedule.warmup_steps=1", "logging.evaluate_every=4", "logging.evaluation_samples=8"),
    *("logging.every=2", "logging.sample_every=0", "data.directory=data/mine", "data.loader_workers=0"),
)


def run(command, **options):
    """Run to the end, without the path to this repository, and return what was printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=300,
        env=kept | {"OMP_NUM_THREADS": "1"},
        **options,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(kind, source, directory):
    """A wheel or an sdist, by the installed setuptools."""
    directory.mkdir(exist_ok=True)
    return directory / run([sys.executable, "-c", BUILD.format(kind), directory], cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a copy of this repository, and the wheel of the sdist."""
    directory = tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "data", "runs", "exported", "samples")
    copy = directory / "copy"
    copy.mkdir()
    for name in ("nar_scale", "configs", "tests", "launcher"):
        top = ignored if name != "nar_scale" else shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=top)
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    sdist = build("sdist", copy, directory / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    return sdist, build("wheel", directory / sdist.name.removesuffix(".tar.gz"), directory / "dist")


def test_what_is_in_the_sdist_and_the_wheel(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "nar_scale").rglob("*.py")}
    wanted = {*CONFIGS, *modules, "nar_scale/py.typed"}
    assert "nar_scale/configs/schema.json" in CONFIGS
    assert wanted <= names
    assert {*wanted, "LICENSE", "README.md", "pyproject.toml"} <= source
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {"nar_scale"}
    assert not [name for name in source if name.startswith(("tests/", "launcher/", "benchmarks/"))]


def needed_by(requirements):
    """Distributions that `pip install` would bring for some requirements, by name; extras are followed."""
    found, waiting = {}, [(Requirement(text), "") for text in requirements]
    done = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found[name] = distribution(name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in done:
                done.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in found[name].requires or ()]
    return found


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The console command of a new environment with what the wheel asks for alone, as links into this one."""
    directory = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", directory])
    (site_packages,) = directory.glob("lib/python*/site-packages")
    with zipfile.ZipFile(built[1]) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    for needed in needed_by(asked).values():
        for top in {file.parts[0] for file in needed.files} - {"..", "__pycache__"}:
            link = site_packages / top
            if not link.exists():
                link.symlink_to(needed.locate_file(top))
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", built[1]])
    return directory / "bin" / "nar-scale"


def test_the_demo_away_from_the_repository(installed, tmp_path):
    python = installed.with_name("python")
    where = run([python, "-c", "import nar_scale; print(nar_scale.__file__)"], cwd=tmp_path).strip()
    assert where.startswith(str(installed.parents[1]))
    here = run([python, "-c", "import sys; print(*sys.path, sep='\\n')"], cwd=tmp_path).splitlines()
    assert not [path for path in here if path.startswith(sys.prefix)]
    for extra in ("tokenizers", "sklearn", "matplotlib", "pyarrow", "pytest", "transformers"):
        asked = ["-c", f"from importlib.util import find_spec; print(find_spec({extra!r}))"]
        assert run([python, *asked], cwd=tmp_path) == "None\n"
    shown = run([installed, "--help"], cwd=tmp_path)
    assert all(f"\n  {name} " in shown for name in COMMANDS)

    run([installed, "init", "my"], cwd=tmp_path)
    assert yaml.safe_load((tmp_path / "my" / "quickstart_nar.yaml").read_text())["objective"]
    (tmp_path / "text.txt").write_text("One line after another, all of them the same.\n" * 200)
    prepared = run(
        [installed, "prepare", "corpus", "text.txt", "--output", "data/mine", "--seq-len", 32, "--workers", 1],
        cwd=tmp_path,
    )
    assert "wrote data/mine" in prepared

    trained = run([installed, "train", "--ranks", 2, "--config", "my/quickstart_nar.yaml", *SMALL], cwd=tmp_path)
    lines = trained.splitlines()
    checkpoint = tmp_path / "runs" / "quickstart_nar" / "checkpoints" / "step-000000004"
    assert TrainingState.load(checkpoint).world_size == 2
    assert [line.split(":")[0].split(",")[0] for line in lines if line.startswith("step ")] == [
        *("step 2/4", "step 4/4", "step 4", "step 4/4"),
    ]
    assert "[INFO]" not in trained  # nothing of the launcher's or of libraries
    run([installed, "consolidate", "--run", "runs/quickstart_nar", "--output", "exported/mine"], cwd=tmp_path)
    measured = ["--checkpoint", "exported/mine", "--data", "data/mine", "--output", "likelihood.json", "--limit", 8]
    assert "bits/byte" in run([installed, "evaluate", *measured], cwd=tmp_path)
    run([installed, "report", "runs/quickstart_nar", "--output", "report.html"], cwd=tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    asked = ["--checkpoint", "exported/mine", "--prompt", "One ", "--length", 12, "--device", "cpu"]
    generated = run([installed, "generate", *asked], cwd=tmp_path)
    assert generated.splitlines()[1].startswith("One ")
