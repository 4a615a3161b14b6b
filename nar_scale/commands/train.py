"""Train a model from a YAML file: in this process, in several of this machine, or under deepspeed, torchrun or srun.

nar-scale train --ranks 2 --config configs/quickstart_nar.yaml training.steps=200

is the same as

deepspeed --quiet --num_accelerators 2 launcher/train.py --config configs/quickstart_nar.yaml training.steps=200
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from nar_scale.commands.process import Parser
from nar_scale.processes import free_port, run_until_stopped

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it while it is imported


class _Parser(Parser):
    """Tells what is wrong in one line, which one of the ranks writes."""

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{self.problem(message)}; see --help")


class _Explain(argparse.Action):
    """Prints what a key means, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, key: Any, option: str | None = None) -> None:
        from nar_scale.config.reference import explain, section_names
        from nar_scale.errors import ConfigError
        from nar_scale.logging_setup import write_result

        try:
            write_result(explain(key) if key else section_names())
        except ConfigError as error:
            parser.error(str(error))
        parser.exit()


def main(arguments: list[str] | None = None) -> int:
    """Run the command with these arguments, or those of the process; returns the exit status."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", required=True, type=os.path.expanduser, metavar="FILE", help="the YAML file of the run"
    )
    parser.add_argument(
        "--resume",
        type=os.path.expanduser,  # a shell expands ~ at the beginning of a word alone
        default="auto",
        metavar="auto|never|PATH",
        help="go on from the newest good checkpoint of the run directory (auto), or from this one (default: auto)",
    )
    parser.add_argument(
        "--init-from",
        type=lambda path: Path(path).expanduser(),
        metavar="DIR",
        help="start from the weights of this consolidated or training checkpoint, unless there is one to resume",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the size of the model, and the memory and length of the run, and exit; with --verbose all "
        "settings, DeepSpeed's too",
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="check all nodes, the configuration and the data in under a minute, and exit",
    )
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="start so many processes on this machine, one a GPU; with --dry-run: for so many",
    )
    parser.add_argument(
        "--explain",
        action=_Explain,
        nargs="?",
        metavar="KEY",
        help="print what a key of the YAML file means, such as optimizer.kind, or all keys of a section, or (without "
        "KEY) the sections, and exit",
    )
    parser.add_argument("--verbose", action="store_true", help="show the libraries' warnings and logs as well")
    parser.add_argument("--local_rank", type=int, metavar="N", help="given by the deepspeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that win over the file")
    options = parser.parse_intermixed_args(arguments)

    if options.ranks is not None and options.ranks < 1:
        parser.error(f"--ranks takes a number from 1 on, not {options.ranks}")
    if options.dry_run and options.resume != "auto":
        parser.error("--dry-run does not look at checkpoints to resume; leave --resume out")
    if options.dry_run:
        from nar_scale.training import dry_run

        return dry_run(options.config, options.overrides, options.ranks, options.init_from, options.verbose)
    if options.ranks is not None and "RANK" in os.environ:
        parser.error("--ranks starts processes, but a launcher has started this one already; leave it out")
    if (options.ranks or 1) > 1:
        check_settings(options)
        return run_ranks(options)
    from nar_scale.training import launch  # after the arguments have been checked: it takes seconds

    return launch(
        options.config,
        options.overrides,
        options.resume,
        options.verbose,
        options.init_from,
        preflight=options.preflight,
    )


def check_settings(options: argparse.Namespace) -> None:
    """End with what is wrong in the configuration, before processes are started to find it out."""
    from nar_scale.config import check_run, load_config
    from nar_scale.errors import UserError

    try:
        check_run(load_config(options.config, options.overrides))
    except UserError as error:
        sys.exit(str(error))


def run_ranks(options: argparse.Namespace) -> int:
    """Run the deepspeed launcher, which starts this command in so many processes; returns the exit status."""
    if not any(map(shutil.which, ("nvidia-smi", "rocm-smi"))):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares warnings
    launcher = [
        *("--quiet", "--num_accelerators", str(options.ranks), "--master_port", str(free_port())),
        *("--no_local_rank", "--module", "nar_scale.commands.console", "train"),
    ]
    arguments = ["--config", options.config, "--resume", options.resume]
    if options.init_from is not None:
        arguments += ["--init-from", str(options.init_from)]
    arguments += ["--verbose"] * options.verbose + ["--preflight"] * options.preflight
    command = ["-m", "deepspeed.launcher.runner", *launcher, *arguments, *options.overrides]
    sys.stdout.write(f"starting {options.ranks} processes\n")
    sys.stdout.flush()
    return run_until_stopped([sys.executable, *command])
