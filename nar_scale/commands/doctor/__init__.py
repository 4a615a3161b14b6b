"""Look at this machine: environment, versions, devices, compiler, limits, and what to do about what is lacking.

nar-scale doctor
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nar_scale.commands.process import Parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, default=Path(), metavar="DIR", help="where runs are to be written (default: here)"
    )
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        parser.error(f"no directory {options.directory}")

    from nar_scale.commands.doctor.machine import examine  # after the arguments have been checked
    from nar_scale.logging_setup import write_result

    findings = examine(options.directory)
    lines = [
        f"{'ok ' if finding.remedy is None else '-> '}{finding.name}: {finding.found}"
        + (f"; {finding.remedy}" if finding.remedy else "")
        for finding in findings
    ]
    write_result("\n".join(lines))
    return 1 if any(finding.remedy for finding in findings) else 0
