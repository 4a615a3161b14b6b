"""Private names of the libraries for remote storage: those in use are listed, and installed versions have them."""

import ast
import inspect
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import nar_scale.data
from nar_scale.data.storage.private_names import FSSPEC, FSSPEC_VERSION, GCSFS, GCSFS_VERSION, S3FS, S3FS_VERSION

PACKAGE = Path(nar_scale.data.__file__).parent
TABLES = {"fsspec": (FSSPEC, FSSPEC_VERSION), "s3fs": (S3FS, S3FS_VERSION), "gcsfs": (GCSFS, GCSFS_VERSION)}
PUBLIC = {"_exit", "_asdict", "_replace"}  # of os and of named tuples, documented


def class_of(dotted):
    module, _, name = dotted.rpartition(".")
    return getattr(import_module(module), name)


def missing(table):
    return [f"{owner}.{name}" for owner, names in table.items() for name in names if not hasattr(class_of(owner), name)]


@pytest.mark.parametrize("library", TABLES)
def test_the_installed_version_has_every_name(library):
    pytest.importorskip(library)
    table, checked = TABLES[library]
    assert missing(table) == [], f"gone from {library} {version(library)}; the uses were checked against {checked}"


def test_a_name_that_is_gone_is_named():
    pytest.importorskip("fsspec")
    assert missing({"fsspec.asyn.AsyncFileSystem": ("_glob", "_gone")}) == ["fsspec.asyn.AsyncFileSystem._gone"]


@pytest.mark.parametrize("library", TABLES)
def test_what_is_awaited_is_a_coroutine(library):
    pytest.importorskip(library)
    for owner, names in TABLES[library][0].items():
        for name in names:
            assert inspect.iscoroutinefunction(getattr(class_of(owner), name)) == (name != "_get_params"), name


def private_names_used():
    """Attributes with a leading underscore of objects that are not of the package."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    own |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    }
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return {name for name in attributes - own if name.startswith("_") and not name.startswith("__")} - PUBLIC


def test_every_private_name_that_is_used_is_listed():
    assert private_names_used() == {name for table, _ in TABLES.values() for names in table.values() for name in names}
