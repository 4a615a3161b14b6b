"""Turn a corpus, or scikit-learn's handwritten digits, into shards for training; inspect, verify and index shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nar_scale.commands.prepare.flags import parse_flags
from nar_scale.commands.prepare.subcommands import parse_subcommand

__all__ = ["main"]

_HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    given = sys.argv[1:] if argv is None else list(argv)
    flags = given and given[0].startswith("-") and given[0] not in _HELP
    arguments = parse_flags(given) if flags else parse_subcommand(given)
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.text import printable

    set_up_logging()

    try:
        report = arguments.job(arguments)
    except UserError as error:
        return report_error("prepare", printable(str(error)))
    try:
        write_result(report)
    except OSError as error:
        return report_error("prepare", f"cannot write the standard output: {error.strerror}")
    return 0
