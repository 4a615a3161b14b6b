"""Turn a consolidated checkpoint into one that other libraries load: Hugging Face's Llama, or x-transformers.

nar-scale export --checkpoint exported/quickstart_ar --format llama --output exported/quickstart_ar_llama
"""

from __future__ import annotations

import argparse

from nar_scale.commands.process import Parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the consolidated checkpoint")
    parser.add_argument("--format", required=True, choices=["llama", "x-transformers"])
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to create")
    parser.add_argument(
        "--weights", default="model", choices=["model", "ema"], help="ema: the moving average (default: model)"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="for the model card of Llama (default: that of the checkpoint)"
    )
    parser.add_argument(
        "--ignore-norm-eps",
        action="store_true",
        help="x-transformers: accept that its norms have another epsilon, so that results differ slightly",
    )
    options = parser.parse_args(arguments)

    # after the arguments have been checked: it takes seconds
    from nar_scale.checkpoint import load_consolidated
    from nar_scale.errors import ConfigError, UserError
    from nar_scale.interop import export_llama, export_x_transformers
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.progress import kept_at_interrupt

    set_up_logging()
    try:
        with kept_at_interrupt(f"{options.output} was not written"):
            model = load_consolidated(options.checkpoint, dtype=None, weights=options.weights)
            if options.format == "llama":
                if options.ignore_norm_eps:
                    raise ConfigError("--ignore-norm-eps is for --format x-transformers; Llama has any norm_eps")
                export_llama(model, options.output, license=options.license)
            else:
                export_x_transformers(model, options.output, ignore_norm_eps=options.ignore_norm_eps)
    except UserError as error:
        return report_error("export", error)
    write_result(f"wrote {options.output}")
    return 0
