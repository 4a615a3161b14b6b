"""The directory that the documentation speaks of: the repository's folders, a text, and what the README makes of it."""

import json
from pathlib import Path

import numpy as np

from .blocks import REPOSITORY, all_blocks

FOLDERS = ("launcher", "configs", "benchmarks", "slurm", "docs")
MADE = (  # by the commands of the README, for the other pages
    "data/mine",
    "mine.json",
    "runs/my",
    "runs/ar",
    "exported/my",
    "exported/ar",
    "exported/hybrid",
)


def build_world(here: Path) -> Path:
    """Write the files that the README begins with, and those of one's own that other pages name."""
    for folder in FOLDERS:
        (here / folder).symlink_to(REPOSITORY / folder)
    book = "\n\n".join(path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md")))
    (here / "my.txt").write_text(book)
    for block in all_blocks("yaml"):
        name, _, rest = block.text.removeprefix("# ").partition("\n")
        if block.text.startswith("# ") and name.endswith(".yaml"):
            assert not (here / name).exists(), f"{name} is written twice: {block.place}"
            (here / name).write_text(rest)
    (here / "my_corpus").mkdir()
    for number, part in enumerate(book.split("\n## ")[:40]):
        (here / "my_corpus" / f"{number}.txt").write_text(part)
    (here / "notes.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in book.split("\n\n")[:50]))
    (here / "prompts.jsonl").write_text('{"text": "All of <mask:2> is <mask:1>."}\n{"text": "A <mask:3>."}\n')
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 16, (40, 8, 8), dtype=np.uint8)
    np.savez(here / "images.npz", images=images, labels=numbers.integers(0, 4, 40))
    for name in ("data", "runs", "exported", "samples", "reports"):
        (here / name).mkdir()
    return here


def open_page(world: Path, here: Path, commands: list[str]) -> Path:
    """A directory for the commands of a page: with all that the README has left, but for what they make anew."""
    own = {word for command in commands for word in command.replace("training.run_directory=", "").split()}
    made = {name for name in MADE if any(f"--output {name} " in f"{command} " for command in commands)} & own
    for path in world.iterdir():
        if path.name in {"data", "runs", "exported", "samples", "reports"}:
            (here / path.name).mkdir()
        else:
            (here / path.name).symlink_to(path)
    for name in MADE:
        if name not in made:
            (here / name).symlink_to(world / name)
    return here
