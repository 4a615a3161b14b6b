"""The structure of the package stays within the targets that `make structure` prints."""

import subprocess
import sys
from collections import Counter

from tests import structure


def test_no_modules_import_each_other_in_a_circle():
    arrows = structure.module_arrows()
    assert sum(map(len, arrows.values())) > 300  # else nothing was read
    assert structure.circles(arrows) == []
    assert structure.circles(structure.package_arrows()) == []


def test_circles_are_found():
    assert structure.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_type_checking_imports_count(tmp_path):
    module = tmp_path / "a.py"
    module.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from x.b import C\n")
    assert structure.imports("x.a", module, {"x.a", "x.b"}) == {"x.b"}


def test_packages_and_modules_stay_small():
    known = structure.modules()
    counts = Counter(name.rpartition(".")[0] for name, path in known.items() if path.name != "__init__.py")
    assert {name: n for name, n in counts.items() if n > structure.MODULES_SIDE_BY_SIDE} == {}
    lengths = {name: len(path.read_text().splitlines()) for name, path in known.items()}
    assert {name: n for name, n in lengths.items() if n > structure.MODULE_LINES} == {}
    assert [where for where, lines in structure.functions() if lines > structure.FUNCTION_LINES] == []


def test_public_names_have_docstrings():
    definitions = list(structure.public_definitions())
    assert len(definitions) > 300
    assert [where for where, node in definitions if not structure.ast.get_docstring(node)] == []


def test_engines_are_typed_and_output_goes_through_logging():
    assert structure.untyped_engines() == []
    assert structure.calls_of("print") == []


def test_the_report_names_its_targets():
    command = [sys.executable, "-m", "tests.structure"]
    report = subprocess.run(command, cwd=structure.ROOT, capture_output=True, text=True, check=True).stdout
    assert "circles of modules" in report
    assert f"at most {structure.MODULE_LINES}" in report
