"""The console command `nar-scale`: the first word chooses the command, the others are its own."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version

from nar_scale.commands.process import Parser, run_command

COMMANDS = {
    "init": "write an example configuration to start from",
    "prepare": "turn a corpus into shards; inspect, verify and index shards",
    "plan": "memory, speed and cost of a run, before it is paid for",
    "doctor": "what this machine lacks for training, and what to do",
    "train": "train a model from a YAML file",
    "consolidate": "turn a training checkpoint into one to load anywhere",
    "evaluate": "likelihood, samples and tasks of checkpoints",
    "harness": "run tasks of lm-evaluation-harness",
    "report": "show a run, or several beside each other, as one HTML page",
    "generate": "generate from scratch, from prompts, or into gaps",
    "export": "write a checkpoint in the format of another library",
    "import": "read a checkpoint of another library",
}
_MODULES = {"import": "import_"}


def main() -> None:
    """Run the command that the first argument names, with the other arguments."""
    parser = Parser(
        prog="nar-scale",
        description="Train and use token transformers, autoregressive and non-autoregressive.",
        epilog="commands:\n" + "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nar_scale {version('nar_scale')}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    if len(sys.argv) == 1:
        parser.print_help()
        sys.exit(2)
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f"nar-scale {command}", *sys.argv[2:]]  # the name that the help of the command begins with
    run_command(_MODULES.get(command, command))


if __name__ == "__main__":  # as ranks are started
    main()
