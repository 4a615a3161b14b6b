"""DeepSpeed's objects are touched in one package alone."""

import ast

from tests.structure import PACKAGE

ENGINE = PACKAGE / "training" / "engine"
# what asks DeepSpeed which keys it knows, and what silences its logger
OTHER_IMPORTS = {"config/deepspeed_keys.py", "logging_setup.py"}
OF_AN_ENGINE = {"was_step_applied", "zero_optimization_stage", "set_gradient_accumulation_boundary", "ds_tensor"}


def others():
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.is_relative_to(ENGINE)
    }


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_deepspeed_is_imported_nowhere_else():
    assert {path for path, tree in others().items() if "deepspeed" in imported(tree)} == OTHER_IMPORTS


def test_no_other_module_asks_an_engine_of_deepspeed_or_its_optimizer():
    assert len(others()) > 100
    for path, tree in others().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                assert node.attr not in OF_AN_ENGINE, (path, node.lineno)
                of_engine = isinstance(node.value, ast.Name | ast.Attribute) and "engine" in ast.unparse(node.value)
                assert not (of_engine and node.attr in ("optimizer", "_engine")), (path, node.lineno)


def test_the_engine_package_does():
    """So the names above are those in use."""
    sources = "".join(path.read_text() for path in ENGINE.glob("*.py"))
    assert {name for name in OF_AN_ENGINE if name in sources} == OF_AN_ENGINE
