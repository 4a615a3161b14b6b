"""A training job as a process: from command-line arguments to an exit status, with each error reported once."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from nar_scale.cluster.endings import Kind, report
from nar_scale.config import check_run, load_config
from nar_scale.errors import UserError
from nar_scale.logging_setup import set_up_logging, silence_libraries
from nar_scale.planning.report import describe_run
from nar_scale.processes import RESUMABLE_EXIT_STATUS
from nar_scale.training.callbacks.callback import Callback
from nar_scale.training.distributed import connect, disconnect, map_launcher_environment
from nar_scale.training.fault_tolerance.error_reporting import first_to_fail, rank_and_host, report_error_once
from nar_scale.training.fault_tolerance.error_translation import PeerLostError
from nar_scale.training.fault_tolerance.preemption import exit_on_signals
from nar_scale.training.rendezvous import StoppedError
from nar_scale.training.run import check, train

_logger = logging.getLogger(__name__)
_IMPORTED_LATE = ("deepspeed", "tensorboard", "webdataset")


def launch(
    config_file: str,
    overrides: Sequence[str] = (),
    resume: str = "auto",
    verbose: bool = False,
    init_from: Path | None = None,
    callbacks: Sequence[Callback] = (),
    preflight: bool = False,
) -> int:
    """Train in this process and its peers, logging to the terminal.

    An error is reported once, by the first rank that notices it: in a line if the user can fix it, with a traceback
    otherwise.

    Args:
        config_file: the YAML file of the run.
        overrides: `section.key=value` settings that win over the file.
        resume: see `train`.
        verbose: show the warnings and logs of libraries as well.
        init_from: see `train`.
        callbacks: see `train`.
        preflight: check nodes, configuration and data, and end before the model is built.

    Returns:
        the exit status: 0 for a complete run, 85 for one that was stopped and has saved, 2 for a `UserError`,
        1 for anything else.

    Raises:
        ModuleNotFoundError: what training needs is not installed.
    """
    exit_on_signals()
    set_up_logging()
    report(Kind.RUNNING)
    for module in _IMPORTED_LATE:  # not after minutes, when they are first used
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    try:
        map_launcher_environment(os.environ)
        config = load_config(config_file, overrides)
        check_run(config)
        if not verbose:
            silence_libraries()
        complete = True
        if preflight:
            check(config, connect())
        else:
            complete = train(config, connect(), resume, init_from, callbacks)
    except StoppedError:
        report(Kind.STOPPED, "asked to stop before its ranks had met")
        if os.environ["RANK"] == "0":
            _logger.warning("asked to stop before the ranks had met; nothing has begun")
        return RESUMABLE_EXIT_STATUS
    except UserError as error:
        report(Kind.USER_ERROR, str(error))
        report_error_once(str(error))
        return 2
    except PeerLostError as error:
        report(Kind.PEER_LOST, str(error))
        report_error_once(str(error))
        return 1
    except Exception as error:
        report(Kind.ERROR, " ".join(f"{type(error).__name__}: {error}".split()))
        if first_to_fail():
            _logger.error("%s%s", traceback.format_exc().rstrip(), rank_and_host(os.environ))
        return 1
    report(Kind.COMPLETE if complete else Kind.STOPPED)
    disconnect()
    return 0 if complete else RESUMABLE_EXIT_STATUS


def dry_run(
    config_file: str,
    overrides: Sequence[str] = (),
    ranks: int | None = None,
    init_from: Path | None = None,
    verbose: bool = False,
) -> int:
    """Log what `launch` would do, once, and write nothing.

    Args:
        ranks: how many processes there would be; as many as there are now if not given.
        init_from: see `train`.
        verbose: show all settings after the summary, DeepSpeed's too.

    Returns:
        the exit status: 0, or 2 for a `UserError`.
    """
    set_up_logging()
    # nobody is connected to, so what launchers set for that may be missing
    environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "LOCAL_RANK": "0", **os.environ}
    try:
        map_launcher_environment(environment)
        if environment["RANK"] != "0":
            return 0
        config = load_config(config_file, overrides)
        check_run(config)
        if config.deepspeed:
            silence_libraries()  # DeepSpeed is asked whether it knows the keys
        _logger.info(describe_run(config, ranks or int(environment["WORLD_SIZE"]), init_from, verbose))
    except UserError as error:
        report_error_once(str(error))
        return 2
    return 0
