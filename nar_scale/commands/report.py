"""Show a run as one HTML page that opens offline: curves, samples, settings, events. Several runs are compared.

nar-scale report --run runs/quickstart_nar
nar-scale report runs/quickstart_nar runs/quickstart_ar --output quickstarts.html
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from nar_scale.commands.process import Parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories, of running or ended runs")
    parser.add_argument("--run", action="append", default=[], metavar="DIR", help="a run directory as well")
    parser.add_argument(
        "--output", metavar="FILE.html", help="where to write (default: RUN/report.html, of several runs ./report.html)"
    )
    options = parser.parse_intermixed_args(arguments)
    directories = list(dict.fromkeys([*options.run, *options.runs]))
    if not directories:
        parser.error("which run? give --run DIR")

    # after the arguments have been checked: it takes seconds
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.reporting.runs import read_runs, write_page

    set_up_logging()
    output = options.output or (Path(directories[0], "report.html") if len(directories) == 1 else "report.html")
    try:
        runs = read_runs(directories)
        write_page(runs, output)
    except UserError as error:
        return report_error("report", error)
    for remark in (remark for run in runs for remark in run.remarks):
        logging.getLogger(__name__).warning("report: %s", remark)
    write_result(f"wrote {output}")
    return 0
