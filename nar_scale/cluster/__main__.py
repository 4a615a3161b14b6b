"""What slurm/train.sbatch and slurm/generate.sbatch run: the supervisor of an attempt of their job."""

import logging
import os
import signal
import sys
from pathlib import Path

from nar_scale.cluster.generation import GenerationSupervisor
from nar_scale.cluster.supervisor import TrainingSupervisor
from nar_scale.errors import UserError
from nar_scale.logging_setup import set_up_logging

SUPERVISORS: dict[str, type[TrainingSupervisor | GenerationSupervisor]] = {
    "train": TrainingSupervisor,
    "generate": GenerationSupervisor,
}


def main(kind: str, *arguments: str) -> int:
    """Supervise the attempt of the SLURM job that this process belongs to; returns the exit status of the job."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # which the batch script turns into the stop file
        signal.signal(number, lambda number, frame: None)
    set_up_logging()
    for handler in logging.getLogger("nar_scale").handlers:
        handler.setFormatter(logging.Formatter(f"{kind}.sbatch: %(message)s"))
    try:
        return SUPERVISORS[kind](arguments, os.environ, Path.cwd()).run()
    except UserError as error:
        logging.getLogger("nar_scale.cluster").error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
