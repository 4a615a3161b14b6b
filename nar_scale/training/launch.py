"""A training job as a process: from command-line arguments to an exit status, with one voice for all ranks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from pathlib import Path

from nar_scale.config import check_run, load_config
from nar_scale.errors import UserError
from nar_scale.logging_setup import quieten_libraries
from nar_scale.planning.report import describe_run
from nar_scale.training.distributed import connect, disconnect, map_launcher_environment
from nar_scale.training.fault_tolerance.error_reporting import first_to_fail, tell_first
from nar_scale.training.fault_tolerance.error_translation import PeerLostError
from nar_scale.training.fault_tolerance.preemption import RESUMABLE_EXIT_STATUS, leave_when_asked
from nar_scale.training.run import train


def launch(
    config_file: str,
    overrides: Sequence[str] = (),
    resume: str = "auto",
    verbose: bool = False,
    init_from: Path | None = None,
) -> int:
    """Train in this process and its peers.

    Whatever goes wrong is told once, by the first rank that notices: a line for what the user can mend, a
    traceback for anything else.

    Returns:
        the exit status: 0 for a complete run, 85 for one that was stopped and has saved, 2 for a `UserError`,
        1 for anything else.
    """
    leave_when_asked()
    try:
        map_launcher_environment(os.environ)
        config = load_config(config_file, overrides)
        check_run(config)
        if not verbose:
            quieten_libraries()
        complete = train(config, connect(), resume, init_from)
    except UserError as error:
        tell_first(str(error))
        return 2
    except PeerLostError as error:
        tell_first(str(error))
        return 1
    except Exception:
        if first_to_fail():
            traceback.print_exc()
        return 1
    disconnect()
    return 0 if complete else RESUMABLE_EXIT_STATUS


def dry_run(
    config_file: str, overrides: Sequence[str] = (), ranks: int | None = None, init_from: Path | None = None
) -> int:
    """Print what `launch` would do, once, and touch nothing.

    Args:
        ranks: how many processes there would be; as many as there are now if not given.
        init_from: as of `launch`.

    Returns:
        the exit status: 0, or 2 for a `UserError`.
    """
    environment = {"MASTER_ADDR": "localhost", **os.environ}
    map_launcher_environment(environment)
    if environment["RANK"] != "0":
        return 0
    try:
        config = load_config(config_file, overrides)
        check_run(config)
        if config.deepspeed:
            quieten_libraries()  # DeepSpeed is asked whether it knows the keys
        print(describe_run(config, ranks or int(environment["WORLD_SIZE"]), init_from))
    except UserError as error:
        tell_first(str(error))
        return 2
    return 0
