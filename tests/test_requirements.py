"""What the package imports is what it asks for: an environment with its requirements alone has all of that."""

import ast
import re
import sys
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "nar_scale"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
MODULES = sorted(PACKAGE.rglob("*.py"))
BRIDGES = {"interop/lm_eval.py", "interop/lm_eval_tasks.py"}  # are classes of a library, which loads them itself
HINT = r"pip install '?nar_scale\[([\w-]+)\]"


def names_of(texts):
    """Distributions of requirements, without the package itself and its extras."""
    return {canonicalize_name(Requirement(text).name) for text in texts} - {canonicalize_name(PROJECT["name"])}


def with_extras_of_extras(name):
    """The distributions that an extra adds, those of the extras that it names among them."""
    texts = PROJECT["optional-dependencies"][name]
    inner = {extra for text in texts if Requirement(text).name == PROJECT["name"] for extra in Requirement(text).extras}
    return names_of(texts).union(*map(with_extras_of_extras, inner))


NEEDED = names_of(PROJECT["dependencies"])
EXTRAS = {name: with_extras_of_extras(name) for name in PROJECT["optional-dependencies"] if name != "dev"}
DISTRIBUTIONS = packages_distributions()


def foreign(node):
    """Top names that a statement imports and that are neither ours nor Python's."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
    tops = {name.partition(".")[0] for name in names}
    return tops - {PACKAGE.name} - sys.stdlib_module_names


def imports(module):
    """Pairs of a top name and whether it is imported as soon as the module is."""
    tree = ast.parse(module.read_text())
    later = {
        id(node)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for node in ast.walk(outer)
    }
    return {(name, id(node) not in later) for node in ast.walk(tree) for name in foreign(node)}


def found_in(modules):
    """Where each top name is imported: the module, and whether at once."""
    found = defaultdict(set)
    for module in modules:
        for name, at_once in imports(module):
            found[name].add((str(module.relative_to(PACKAGE)), at_once))
    return found


FOUND = found_in(MODULES)


def distributions(name):
    """Those that have a top name."""
    assert name in DISTRIBUTIONS, f"{name} is imported, but not installed"
    return set(map(canonicalize_name, DISTRIBUTIONS[name]))


def test_something_is_found():
    assert {"torch", "yaml", "PIL", "pyarrow", "transformers", "sklearn"} <= set(FOUND)
    assert len(MODULES) > 200


@pytest.mark.parametrize("name", sorted(FOUND))
def test_what_is_imported_is_asked_for(name):
    given = distributions(name)
    if given & NEEDED:
        return
    extras = {extra for extra, wanted in EXTRAS.items() if given & wanted}
    assert extras, f"{name} of {given} is in no requirement: {FOUND[name]}"
    assert {module for module, at_once in FOUND[name] if at_once} <= BRIDGES


@pytest.mark.parametrize("module", [module for module in MODULES if re.search(HINT, module.read_text())], ids=str)
def test_the_extra_that_a_message_names_has_what_the_module_lacks(module):
    lacking = [distributions(name) for name, _ in imports(module) if not distributions(name) & NEEDED]
    hinted = set(re.findall(HINT, module.read_text()))
    assert hinted <= set(EXTRAS)
    added = set().union(*(EXTRAS[extra] for extra in hinted))
    assert [given for given in lacking if not given & added] == []


def test_what_is_asked_for_is_imported_or_said_to_be_needed():
    """By name of the distribution; storage and the harness of metrics load theirs by name."""
    used = set().union(*map(distributions, FOUND))
    assert NEEDED - used <= {"tensorboard"}  # imported by torch.utils.tensorboard
    assert set().union(*EXTRAS.values()) - used <= {"s3fs"}  # imported by fsspec


def test_an_import_without_a_requirement_is_seen(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    module = tmp_path / "new.py"
    module.write_text(
        "import os, torch.nn\nfrom .near import x\n"
        "if TYPE_CHECKING:\n    import yaml\n"
        "def f():\n    import pyarrow.csv\n"
    )
    assert imports(module) == {("torch", True), ("yaml", False), ("pyarrow", False)}
    monkeypatch.setitem(globals(), "FOUND", {"hypothesis": {("new.py", False)}})
    with pytest.raises(AssertionError, match="hypothesis"):
        test_what_is_imported_is_asked_for("hypothesis")
