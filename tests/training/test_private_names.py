"""What the package uses of libraries without a promise that it stays: listed, and there in the installed versions."""

import ast
import importlib
import importlib.metadata
import inspect
import re

import pytest

from nar_scale.training.engine.private_names import DEEPSPEED, DEEPSPEED_VERSION
from nar_scale.training.private_names import TORCH, TORCH_VERSION
from tests.structure import PACKAGE

OF_THE_STANDARD_LIBRARY = {"_exit", "_current_frames", "_replace"}
TABLES = "private_names.py"


def found(dotted):
    """A module, class or object by its dotted name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            owner = getattr(owner, name)
        return owner
    raise LookupError(dotted)


def has(owner, name):
    """Whether an object has an attribute, its instances are given it, or a module gives it to its parameters."""
    if hasattr(owner, name):
        return True
    if inspect.isclass(owner):
        sources = [inspect.getsource(each) for each in owner.__mro__ if each is not object]
        return any(
            re.search(rf"self\.{name}\b.*=", source) or re.search(rf"^ +{name}:", source, re.M) for source in sources
        )
    return inspect.ismodule(owner) and re.search(rf"\.{name} = ", inspect.getsource(owner)) is not None


def missing(table):
    return [f"{owner}.{name}" for owner, names in table.items() for name in names if not has(found(owner), name)]


@pytest.mark.parametrize(
    ("library", "table", "version"),
    [("deepspeed", DEEPSPEED, DEEPSPEED_VERSION), ("torch", TORCH, TORCH_VERSION)],
)
def test_the_installed_version_has_every_name(library, table, version):
    installed = importlib.metadata.version(library)
    assert missing(table) == [], f"gone from {library} {installed}; the uses were checked against {version}"


def test_a_name_that_is_gone_is_named():
    table = {"deepspeed.runtime.engine.DeepSpeedEngine": ("fp16_enabled", "_gone"), "torch": ("_gone_as_well",)}
    assert missing(table) == ["deepspeed.runtime.engine.DeepSpeedEngine._gone", "torch._gone_as_well"]


def private(name):
    return name.startswith("_") and not name.endswith("__")


def used(tree):
    """Private attributes of anything but `self` and `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            of_own_object = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not of_own_object:
                yield node.lineno, node.attr


def defined(tree):
    """Private names that a module gives to functions, classes, attributes and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def listed():
    """All names in the package's tables."""
    tables = [ast.parse(path.read_text()) for path in PACKAGE.rglob(TABLES)]
    assert len(tables) >= 2
    strings = (node.value for tree in tables for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {text for text in strings if isinstance(text, str)}


def unlisted(trees, allowed):
    own = {name for tree in trees.values() for name in defined(tree)}
    return [
        f"{path}:{line} {name}"
        for path, tree in trees.items()
        for line, name in used(tree)
        if name not in own | allowed
    ]


def test_every_private_name_in_the_code_is_listed():
    paths = sorted(PACKAGE.rglob("*.py"))
    if not (PACKAGE / "data" / "storage" / TABLES).exists():  # whose table is to come
        paths = [path for path in paths if "storage" not in path.parts]
    trees = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in paths}
    assert unlisted(trees, listed() | OF_THE_STANDARD_LIBRARY) == []


def test_a_private_name_that_is_not_listed_is_named():
    tree = ast.parse("class A:\n    def f(self, other):\n        self._own = other._own + other._theirs\n")
    assert unlisted({"a.py": tree}, set()) == ["a.py:3 _theirs"]
