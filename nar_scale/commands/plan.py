"""Plan a training run before paying for it: what fits, how fast it is, what it costs. Needs no accelerator.

nar-scale plan --config configs/1.4b_nar.yaml --devices 64 --device h100 --price 2.5
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nar_scale.commands.process import Parser


def _path(text: str) -> Path:
    return Path(text).expanduser()


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=os.path.expanduser, metavar="FILE", help="the YAML file of the run"
    )
    parser.add_argument("--devices", required=True, type=int, metavar="N", help="accelerators in all, one rank each")
    parser.add_argument("--device", default="h100", metavar="KIND", help="h100, h200, b200, a100, ... (default: h100)")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes that they stand in (default: of 8 devices each)")
    parser.add_argument(
        "--interconnect", type=float, metavar="GBIT", help="Gbit/s between nodes for each device (default: as usual)"
    )
    parser.add_argument("--price", type=float, metavar="P", help="of a device and hour, in any currency")
    parser.add_argument(
        "--measured", type=_path, metavar="FILE", help="facts.json of the GPU kit, in place of the data sheet"
    )
    parser.add_argument(
        "--failure-hours",
        type=float,
        default=50_000,
        metavar="H",
        help="device-hours between failures (default: 50000, as of Llama 3)",
    )
    parser.add_argument(
        "--storage", type=float, default=5, metavar="GB", help="GB/s that checkpoints are written with (default: 5)"
    )
    parser.add_argument("--json", type=_path, metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--png", type=_path, metavar="FILE", help="draw the scaling table there")
    parser.add_argument("--settings", action="store_true", help="print all settings, DeepSpeed's too, at the end")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file")
    options = parser.parse_intermixed_args(arguments)
    for name in ("devices", "nodes", "interconnect", "price", "failure_hours", "storage"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} takes a number above 0, not {value}")

    # after the arguments have been checked: it takes seconds
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.planning.command import Options, plan

    set_up_logging()
    given = {name: value for name, value in vars(options).items() if name not in ("config", "overrides")}
    try:
        write_result(plan(options.config, options.overrides, Options(**given)))
    except UserError as error:
        return report_error("plan", error)
    return 0
