"""Turn a model of another library into a consolidated checkpoint: to generate, fine-tune, or start others from it.

nar-scale import --format llama models/tiny_llama --output exported/tiny_llama
"""

from __future__ import annotations

import argparse

from nar_scale.commands.process import Parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "directory", metavar="DIR", help="in Hugging Face's layout: config.json, safetensors, tokenizer.json if any"
    )
    parser.add_argument("--format", required=True, choices=["llama"])
    parser.add_argument("--output", required=True, metavar="DIR", help="the directory to create")
    parser.add_argument(
        "--end-token",
        type=lambda text: int(text) if text.isdecimal() else text,
        metavar="NAME|ID",
        help="the token that ends a document (default: eos_token_id of config.json)",
    )
    options = parser.parse_args(arguments)

    # after the arguments have been checked: it takes seconds
    from nar_scale.checkpoint import compared
    from nar_scale.errors import UserError
    from nar_scale.interop import import_llama
    from nar_scale.logging_setup import report_error, set_up_logging, write_result
    from nar_scale.progress import kept_at_interrupt

    set_up_logging()
    try:
        with kept_at_interrupt(f"{options.output} was not written"):
            difference = import_llama(options.directory, options.output, end_token=options.end_token)
    except UserError as error:
        return report_error("import", error)
    write_result(f"wrote {options.output}; its logits {compared(difference, options.directory)}")
    return 0
