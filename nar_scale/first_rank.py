"""Which rank of a job tells an error that others may have met as well, before the ranks are connected.

A launcher kills all ranks, or all of a node, when one has ended. So the first rank tells the error at once, and the
others wait: whoever still lives then has met it alone. Where a launcher kills nobody, as srun may be told, an error of
all ranks is told by each.

This module needs nothing but the standard library of an old Python, and can be loaded without the package.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

_SECONDS = 30.0


def wait_for_first_rank() -> None:
    """Return when this rank may tell an error and end: the first rank at once, others after the ranks before them."""
    time.sleep(seconds_after_first_rank(os.environ))


def seconds_after_first_rank(environment: Mapping[str, str]) -> float:
    """How long the first rank, and then the first one of this rank's node, is given to tell an error.

    Args:
        environment: with the variables that `deepspeed`, torchrun or srun has set; without any, a process is alone.
    """
    if not _number(environment, "RANK", "SLURM_PROCID"):
        return 0.0
    return 2 * _SECONDS if _number(environment, "LOCAL_RANK", "SLURM_LOCALID") else _SECONDS


def _number(environment: Mapping[str, str], *names: str) -> int:
    """The first of the variables that is set; 0 if none is, or it is not a number."""
    value = next((environment[name] for name in names if name in environment), "0")
    return int(value) if value.isdecimal() else 0
