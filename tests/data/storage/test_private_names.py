"""The private names of libraries: all that are used are listed, and the installed versions have them."""

import ast
import inspect
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import nar_scale.data
from nar_scale.data.storage.private_names import LIBRARIES

PACKAGE = Path(nar_scale.data.__file__).parent
OWN = ("self", "cls")
PUBLIC = {"_exit", "_asdict", "_replace"}  # of os and of named tuples, documented


def owner_of(name):
    module, _, attribute = name.owner.partition(":")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.distribution)
def test_the_installed_version_has_the_names(library):
    pytest.importorskip(library.distribution)
    missing = [f"{n.owner}.{n.name}" for n in library.names if not hasattr(owner_of(n), n.name)]
    assert not missing, (
        f"{library.distribution} {version(library.distribution)} lacks {', '.join(missing)}, which "
        f"{library.checked_version} had: see nar_scale/data/storage/private_names.py"
    )


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.distribution)
def test_coroutines_are_still_coroutines(library):
    pytest.importorskip(library.distribution)
    for name in library.names:
        if name.name != "_get_params":
            assert inspect.iscoroutinefunction(getattr(owner_of(name), name.name)), name


def private_names_used():
    """Attributes with a leading underscore of objects that are not of the package."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OWN
    }
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return {name for name in attributes - own if name.startswith("_") and not name.startswith("__")} - PUBLIC


def test_every_private_name_that_is_used_is_listed():
    listed = {name.name for library in LIBRARIES for name in library.names}
    assert private_names_used() == listed
