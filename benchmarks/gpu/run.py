"""Proves and measures nar_scale on a GPU, stage after stage, in a new environment made of what `make gpu-kit` gathered.

Each stage has a time limit and cannot stop the others; its results are on disk while it goes on. `--only` runs some
stages again and keeps the results of the others, and of a stage that is cut off what an earlier use measured.

examples:
  make gpu-kit                                           # on a machine with network
  bash benchmarks/gpu.sh                                 # on the GPU machine: all, in less than 8 minutes
  bash benchmarks/gpu.sh --only training --seconds 500   # what was cut off
  bash benchmarks/gpu.sh --rehearse                      # anywhere: the same with tiny shapes on CPUs
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from benchmarks.gpu import report
from benchmarks.gpu.environment import KitError, make_environment
from benchmarks.gpu.machine import commit, gpus, hardware, versions
from benchmarks.gpu.stage import KIT_VARIABLE, REHEARSE_VARIABLE, ROOT
from benchmarks.gpu.stage_process import Interrupted, Stage, StageRun

STAGES = (
    Stage("facts", ("-m", "benchmarks.gpu.facts"), 50),  # the first to read torch from a cold disk
    Stage("tests", ("-m", "benchmarks.gpu.tests"), 150),
    Stage("training", ("-m", "benchmarks.gpu.training_speed"), 200),
    Stage("generation", ("-m", "benchmarks.gpu.generation_speed"), 70),
)
TOTAL_SECONDS = 480.0  # the set-up included
LEAST_SECONDS = 5.0  # a stage with less is not started
SHOWN_LINES = 15  # of the output of a stage that failed


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [stage.name for stage in STAGES]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help=f"for everything (default {TOTAL_SECONDS:g}); more than the limits of the stages together raises these",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: $OUT, or else runs/gpu")
    parser.add_argument("--kit", type=Path, default=ROOT / ".gpu", metavar="DIR", help="default: .gpu")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on CPUs, to find typos")
    arguments = parser.parse_args(argv)
    if arguments.output is None:
        default = ROOT / "runs" / ("gpu_rehearsal" if arguments.rehearse else "gpu")
        arguments.output = Path(os.environ.get("OUT") or default)
    if arguments.seconds is not None and arguments.seconds <= 0:
        parser.error("--seconds takes a number above 0")
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raise what makes a use pointless: no kit, no GPU, or results of the other kind in the output directory."""
    if not (arguments.kit / "wheels").is_dir():
        raise KitError(f"{arguments.kit} is not there; make it with `make gpu-kit` on a machine with network")
    if not arguments.rehearse and not gpus():
        raise KitError("nvidia-smi shows no GPU here; --rehearse runs the stages on CPUs")
    for result in report.load(arguments.output, [stage.name for stage in STAGES]):
        if result["rehearsal"] != arguments.rehearse:
            kind = "a rehearsal" if result["rehearsal"] else "a GPU"
            raise KitError(f"{arguments.output} holds results of {kind}; name another directory with --output")


def stage_variables(arguments: argparse.Namespace, work: Path, installed: dict[str, str]) -> dict[str, str]:
    """The environment variables of a stage; its temporary files go where they are removed afterwards."""
    scratch = work / "tmp"
    scratch.mkdir()
    variables = {
        **os.environ,
        **installed,
        KIT_VARIABLE: str(arguments.kit.resolve()),
        "TMPDIR": str(scratch),
        "PYTHONUNBUFFERED": "1",  # so that a stage that is killed leaves its output
    }
    if arguments.rehearse:
        variables |= {REHEARSE_VARIABLE: "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return variables


def run_stages(stages: Sequence[Stage], runner: StageRun, seconds: float | None, start: float) -> list[report.Result]:
    """Run stages in order, each within its own limit and within what is left of all the time since `start`.

    Args:
        seconds: for everything; where it exceeds the limits of these stages together, they are raised in proportion.
        start: of the use, in `time.monotonic`'s seconds.
    """
    raised = max(1.0, (seconds or 0) / sum(stage.seconds for stage in stages))
    deadline = start + (TOTAL_SECONDS if seconds is None else seconds)
    results = []
    try:
        for stage in stages:
            left = deadline - time.monotonic()
            if left < LEAST_SECONDS:
                result = runner.not_started(stage)
            else:
                result = runner.run(stage, min(stage.seconds * raised, left))
            results.append(result)
            print(f"== {stage.name}: {result['status']} after {result['seconds']:.1f} s", flush=True)
            if result["output_end"]:
                print("\n".join(result["output_end"][-SHOWN_LINES:]), flush=True)
    except Interrupted as interruption:
        results.append(interruption.result)
    return results


def interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    start = time.monotonic()
    arguments = parse_arguments(argv)
    signal.signal(signal.SIGTERM, interrupt)
    chosen = [stage for stage in STAGES if arguments.only is None or stage.name in arguments.only]
    try:
        check(arguments)
        with tempfile.TemporaryDirectory(prefix="nar-gpu-", ignore_cleanup_errors=True) as folder:
            work = Path(folder)
            installed, surrounding = make_environment(arguments.kit / "wheels", work / "site", ROOT)
            variables = stage_variables(arguments, work, installed)
            common = {
                "rehearsal": arguments.rehearse,
                "command": shlex.join(["bash", "benchmarks/gpu.sh", *(sys.argv[1:] if argv is None else argv)]),
                "commit": commit(ROOT, arguments.kit),
                "hardware": hardware(),
                "versions": versions(variables),
            }
            taken = f"; {', '.join(surrounding)} as installed: no wheel fits" if surrounding else ""
            print(f"== environment: ready after {time.monotonic() - start:.1f} s{taken}", flush=True)
            arguments.output.mkdir(parents=True, exist_ok=True)
            order = [stage.name for stage in STAGES]
            runner = StageRun(arguments.output, variables, work, common, order)
            results = run_stages(chosen, runner, arguments.seconds, start)
    except (KitError, OSError) as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        return 2
    print(f"== {time.monotonic() - start:.0f} s; all measurements are in {arguments.output / report.TABLE}")
    print(report.summary(results))
    return 0 if all(result["status"] == "passed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
