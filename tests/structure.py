"""The structure of the package in numbers, beside the targets of docs/design.md: `make structure`.

Reads source text alone. `test_imports.py` and `test_structure.py` hold what must never change for the worse.
"""

import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nar_scale"
MODULE_LINES, MEDIAN_LINES, FUNCTION_LINES, MODULES_SIDE_BY_SIDE = 450, 150, 80, 12
ENGINE = "nar_scale.training.engine"

Functions = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    return {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a module imports anywhere, type-checking imports included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return {each for each in found if each in known and each != name}


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for target in sorted(arrows.get(node, ())):
            if target not in order:
                visit(target)
                lowest[node] = min(lowest[node], lowest[target])
            elif target in stack:
                lowest[node] = min(lowest[node], order[target])
        if lowest[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return found


def module_arrows() -> dict[str, set[str]]:
    """What each module imports, but for packages' `__init__`, which only pass names on."""
    known = modules()
    faces = {name for name, path in known.items() if path.name == "__init__.py"}
    names = set(known)
    return {name: imports(name, path, names) - faces for name, path in known.items() if name not in faces}


def package_arrows() -> dict[str, set[str]]:
    """What each sub-package of training and of data imports of its siblings."""
    result: dict[str, set[str]] = defaultdict(set)
    for name, targets in module_arrows().items():
        for target in targets:
            here, there = sub_package(name), sub_package(target)
            if here and there and here != there and here.split(".")[1] == there.split(".")[1]:
                result[here].add(there)
    return dict(result)


def sub_package(name: str) -> str | None:
    parts = name.split(".")
    return ".".join(parts[:3]) if len(parts) == 4 else None


def functions() -> Iterator[tuple[str, int]]:
    """Each function with its length in lines."""
    for name, path in modules().items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, Functions) and node.end_lineno is not None:
                yield f"{name}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def public_definitions() -> Iterator[tuple[str, Functions | ast.ClassDef]]:
    """Public classes, functions and methods of public classes."""
    for name, path in modules().items():
        for node in parsed(path).body:
            if isinstance(node, Functions | ast.ClassDef) and not node.name.startswith("_"):
                yield f"{name}:{node.lineno} {node.name}", node
                for inner in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(inner, Functions) and not inner.name.startswith("_"):
                        yield f"{name}:{inner.lineno} {node.name}.{inner.name}", inner


def calls_of(function: str) -> list[str]:
    """Where a built-in function is called."""
    return [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    ]


def untyped_engines() -> list[str]:
    """Arguments named like an engine or an optimizer and typed `Any`, outside the one package that knows DeepSpeed."""
    found = []
    for name, path in modules().items():
        if name == ENGINE or name.startswith(f"{ENGINE}."):
            continue
        for node in ast.walk(parsed(path)):
            target = (node.arg, node.annotation) if isinstance(node, ast.arg) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name | ast.Attribute):
                target = (getattr(node.target, "id", getattr(node.target, "attr", "")), node.annotation)
            typed_any = target and isinstance(target[1], ast.Name) and target[1].id == "Any"
            if target and typed_any and ("engine" in target[0] or "optimizer" in target[0]):
                found.append(f"{name}:{node.lineno} {target[0]}")
    return found


def is_annotated(node: Functions) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return node.returns is not None and all(a.annotation for a in arguments if a.arg not in ("self", "cls"))


def main() -> int:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    side_by_side: dict[str, int] = defaultdict(int)
    for name, path in modules().items():
        if path.name != "__init__.py":
            side_by_side[name.rpartition(".")[0]] += 1
    bodies = [length for name, length in lengths.items() if modules()[name].name != "__init__.py"]
    long_functions = [f"{where} ({length})" for where, length in functions() if length > FUNCTION_LINES]
    definitions = list(public_definitions())
    documented = [where for where, node in definitions if ast.get_docstring(node)]
    callables = [(where, node) for where, node in definitions if isinstance(node, Functions)]
    annotated = [where for where, node in callables if is_annotated(node)]
    arrows = module_arrows()
    show("modules side by side, by package", "at most 12", max(side_by_side.values()))
    for package, count in sorted(side_by_side.items(), key=lambda item: -item[1]):
        print(f"    {package:<44}{count:>4}")
    show("modules", "", len(bodies))
    show("lines of a module, median", f"at most {MEDIAN_LINES}", statistics.median(bodies))
    show("lines of the longest module", f"at most {MODULE_LINES}", max(bodies))
    show(f"functions over {FUNCTION_LINES} lines", "0", len(long_functions), long_functions)
    show("arrows between modules", "", sum(map(len, arrows.values())))
    show("circles of modules", "0", len(circles(arrows)), [" <-> ".join(c) for c in circles(arrows)])
    between = package_arrows()
    show("arrows between sub-packages", "", sum(map(len, between.values())))
    show("circles of sub-packages", "0", len(circles(between)), [" <-> ".join(c) for c in circles(between)])
    show(f"engines and optimizers typed Any outside {ENGINE}", "0", len(untyped_engines()), untyped_engines())
    show("calls of print", "0", len(calls_of("print")), calls_of("print"))
    missing = sorted({where for where, _ in definitions} - set(documented))
    show("public names with a docstring, %", "100", round(100 * len(documented) / len(definitions), 1), missing)
    bare = sorted({where for where, _ in callables} - set(annotated))
    show("public functions with all annotations, %", "100", round(100 * len(annotated) / len(callables), 1), bare)
    return 0


def show(what: str, target: str, value: float, details: list[str] | None = None) -> None:
    print(f"{what:<64}{value:>8}   {'target ' + target if target else ''}")
    for line in (details or [])[:10]:
        print(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
