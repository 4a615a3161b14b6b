"""Write an example configuration to start from, and say what to do with it.

nar-scale init my_model
nar-scale init my_model --example quickstart_ar
"""

from __future__ import annotations

import argparse
from itertools import dropwhile, takewhile
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from nar_scale.commands.process import Parser

if TYPE_CHECKING:
    from nar_scale.config import Config

EXAMPLES = Path(__file__).resolve().parents[1] / "configs"


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    names = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))
    parser = Parser(
        description=__doc__,
        epilog="examples:\n" + "\n".join(f"  {name:18} {_about(name)}" for name in names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write it")
    parser.add_argument(
        "--example",
        choices=names,
        default="quickstart_nar",
        metavar="NAME",
        help="one of those below (default: quickstart_nar)",
    )
    options = parser.parse_args(arguments)

    from nar_scale.config import load_config  # after the arguments have been checked: it takes seconds
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import report_error, set_up_logging, write_result

    set_up_logging()

    sources = [EXAMPLES / f"{options.example}.yaml", EXAMPLES / f"{options.example}.prompts.jsonl"]
    written = {options.directory / source.name: source.read_bytes() for source in sources if source.exists()}
    try:
        for path in written:
            if path.exists():
                raise UserError(f"{path} is there already and stays as it is; choose another directory")
        options.directory.mkdir(parents=True, exist_ok=True)
        for path, content in written.items():
            with open(path, "xb") as file:
                file.write(content)
    except UserError as error:
        return report_error("init", error)
    path = next(iter(written))
    prepare, override = _data(load_config(path), options.directory.name)
    lines = [
        f"wrote {', '.join(map(str, written))}",
        "next:",
        f"  nar-scale prepare {prepare}",
        f"  nar-scale train --config {path}{override}   (--ranks N: in N processes)",
    ]
    write_result("\n".join(lines))
    return 0


def _data(config: Config, name: str) -> tuple[str, str]:
    """How `prepare` makes the data of an example, and the override with which the example takes data of one's own."""
    if config.data.class_field:
        return f"digits --output {config.data.directory}", ""
    tokens = 2048 if config.model.dim < 512 else 32_768
    tokenizer = f"--tokenizer data/{name}.tokenizer.json --train-tokenizer {tokens}"
    return (
        f"corpus TEXT_FILES --seq-len {config.model.max_seq_len} {tokenizer} --output data/{name}",
        f" data.directory=data/{name}",
    )


def _about(name: str) -> str:
    """The first sentence of the comment that a configuration begins with."""
    lines = (EXAMPLES / f"{name}.yaml").read_text().splitlines()
    comment = takewhile(lambda line: line.startswith("# "), dropwhile(lambda line: "yaml-language" in line, lines))
    sentence = " ".join(line[2:] for line in comment).split(". ")[0].rstrip(".")
    return shorten(sentence, 130, placeholder=" ...")
