"""Wheels of a few lines."""

import zipfile
from pathlib import Path


def write_wheel(wheels: Path, name: str, requires: tuple[str, ...] = (), tag: str = "py3-none-any") -> None:
    """A wheel of one module of that name, whose VALUE is 7."""
    wheels.mkdir(parents=True, exist_ok=True)
    information = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "VALUE = 7\n",
        f"{information}/METADATA": "\n".join(
            (
                "Metadata-Version: 2.1",
                f"Name: {name}",
                "Version: 1.0",
                *(f"Requires-Dist: {one}" for one in requires),
                "",
            )
        ),
        f"{information}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    files[f"{information}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{information}/RECORD"))
    with zipfile.ZipFile(wheels / f"{name}-1.0-{tag}.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
