"""A training job as a process: from command-line arguments to an exit status, with one voice for all ranks."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import torch.distributed as dist

from nar_scale.config import load_config
from nar_scale.errors import UserError
from nar_scale.training.distributed import connect, disconnect, map_launcher_environment
from nar_scale.training.quiet import quieten_libraries
from nar_scale.training.run import train
from nar_scale.training.stop import RESUMABLE_EXIT_STATUS

_FAILED = "nar_scale/failed"


def launch(config_file: str, overrides: Sequence[str] = (), resume: str = "auto", verbose: bool = False) -> int:
    """Train in this process and its peers.

    Whatever goes wrong is told once, by the first rank that notices: a line for what the user can mend, a
    traceback for anything else.

    Returns:
        the exit status: 0 for a complete run, 85 for one that was stopped and has saved, 2 for a `UserError`,
        1 for anything else.
    """
    try:
        map_launcher_environment(os.environ)
        config = load_config(config_file, overrides)
        if not verbose:
            quieten_libraries()
        complete = train(config, connect(), resume)
    except UserError as error:
        if _first_to_fail():
            print(f"train: error: {error}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        if _first_to_fail():
            traceback.print_exc()
        return 1
    disconnect()
    return 0 if complete else RESUMABLE_EXIT_STATUS


def _first_to_fail() -> bool:
    """Whether no other rank has failed before; a lost connection is the echo of another rank's failure."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"  # before they are connected all ranks fail alike
    try:
        return dist.distributed_c10d._get_default_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):
        return False
