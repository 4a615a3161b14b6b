"""Turn a run's training checkpoint into one that loads without DeepSpeed: sharded safetensors and all that belongs.

It appears only after the reloaded model's logits match those the live model left behind.

nar-scale consolidate --run runs/quickstart_nar --output exported/quickstart_nar
"""

from __future__ import annotations

import argparse

from nar_scale.commands.process import Parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, metavar="DIR", help="the run directory")
    parser.add_argument("--step", type=int, metavar="N", help="which checkpoint (default: the newest good one)")
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to create")
    parser.add_argument(
        "--license", metavar="NAME", help="for the model card, such as apache-2.0 (default: checkpoint.license)"
    )
    options = parser.parse_args(arguments)

    # after the arguments have been checked: it takes seconds
    from nar_scale.checkpoint import compared, consolidate
    from nar_scale.errors import UserError
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.progress import kept_at_interrupt

    set_up_logging()
    try:
        with kept_at_interrupt(f"{options.output} was not written"):
            difference = consolidate(options.run, options.output, options.step, options.license)
    except UserError as error:
        return report_error("consolidate", error)
    write_result(f"wrote {options.output}; its logits {compared(difference, 'the trained model')}")
    return 0
