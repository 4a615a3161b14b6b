"""Which package may import which, and what an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nar_scale"
GROUND = {"errors", "files", "first_rank", "logging_setup", "processes", "progress", "text"}
FLOORS = [
    {"config", "data", "fleet", "masking", "model"},
    {"decoding", "cluster"},
    {"objectives"},
    {"evaluation", "checkpoint"},
    {"planning"},
    {"training", "generation"},
    {"interop", "reporting"},
    {"examples"},
    {"commands"},
]
FLOOR = {package: number for number, packages in enumerate([GROUND, *FLOORS]) for package in packages}
MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(module):
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(module):
    """Dotted names that a module imports anywhere, `from x import y` as both x and x.y."""
    package = (PACKAGE.name, *module.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def packages_used(module):
    names = (name.split(".") for name in imported(module))
    return {name[1] for name in names if name[0] == PACKAGE.name and len(name) > 1 and name[1] in FLOOR}


def test_every_package_has_a_floor():
    assert {package_of(module) for module in MODULES} - {"__init__"} <= set(FLOOR)
    assert len(MODULES) > 40


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_packages_import_from_lower_floors_only(module):
    package = package_of(module)
    if package == "__init__":
        return
    assert {used for used in packages_used(module) - {package} if FLOOR[used] >= FLOOR[package]} == set()


def test_nothing_uses_the_scripts():
    assert [
        str(module) for module in MODULES if any(name.split(".")[0] == "launcher" for name in imported(module))
    ] == []


def test_the_reader_of_imports_sees_all_kinds(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "nar_scale")
    module = tmp_path / "nar_scale" / "masking" / "new.py"
    module.parent.mkdir(parents=True)
    for line in (
        "import nar_scale.training.run",
        "from nar_scale import training",
        "from nar_scale.training.run import train",
        "from ..training import run",
        "from .. import training",
        "def f():\n    from nar_scale.training import train",
    ):
        module.write_text(line)
        assert packages_used(module) == {"training"}


def loaded_by(statement):
    script = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_using_a_model_needs_no_training_library():
    packages = "import nar_scale, nar_scale.checkpoint, nar_scale.decoding, nar_scale.evaluation, nar_scale.generation"
    loaded = loaded_by(packages)
    assert "nar_scale" in loaded
    assert not loaded & {"deepspeed", "webdataset", "tensorboard", "transformers", "x_transformers", "sklearn", "PIL"}


def test_importing_the_package_does_not_import_the_compiler_of_torch():
    """It takes as long as torch itself."""
    loaded = loaded_by("import nar_scale; nar_scale.NonAutoregressiveWrapper; nar_scale.load")
    assert "torch" in loaded
    assert not loaded & {"einx", "torch._dynamo", "sympy"}
