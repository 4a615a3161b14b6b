"""The fenced blocks of the documentation, and the commands in them."""

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(REPOSITORY))
    for path in [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "slurm/README.md")),
        *(REPOSITORY / "docs").rglob("*.md"),
    ]
)
LANGUAGES = {"bash", "python", "yaml", "text"}  # text is what is shown, not what is to be run
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its page, the line where it begins, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page, in their order."""
    text = (REPOSITORY / page).read_text()
    found = []
    for fence in _FENCE.finditer(text):
        indent, language, inside = fence.groups()
        lines = [line.removeprefix(indent) for line in inside.splitlines()]
        found.append(Block(page, text.count("\n", 0, fence.start()) + 1, language, "\n".join(lines) + "\n"))
    return found


def all_blocks(language: str) -> list[Block]:
    """The blocks of all pages in a language."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def commands_of(block: Block) -> list[str]:
    """The commands of a block of bash, each on one line, without comments."""
    joined = re.sub(r"\\\n\s*", "", block.text)
    bare = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [command for command in bare if command]
