"""Training as a function of a program or a notebook, which leaves the process as it was."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nar_scale.checkpoint import CheckpointStore
from nar_scale.config import Config, check_run, load_config, override_config
from nar_scale.errors import UserError
from nar_scale.logging_setup import set_up_logging, silence_libraries
from nar_scale.training.callbacks.callback import Callback, RunView
from nar_scale.training.distributed import connect, disconnect
from nar_scale.training.fault_tolerance.error_reporting import own_store
from nar_scale.training.metrics.jsonl import last_values
from nar_scale.training.metrics.writer import METRICS_FILE
from nar_scale.training.run import train


@dataclass(frozen=True)
class TrainingResult:
    """What a run has come to.

    Attributes:
        run_directory: with checkpoints, metrics and samples; what `nar_scale.consolidate` takes.
        complete: whether the last step was taken; if not, the run was interrupted and has saved.
        step: optimizer steps taken.
        checkpoint: the directory of the checkpoint of this step; None where nothing was to be saved.
        loss: the last that was logged, in nats per token; None where none was.
        validation: the last evaluation, by the names of `metrics.jsonl`, such as `validation_nats_per_token`; empty
            where there was none.
    """

    run_directory: Path
    complete: bool
    step: int
    checkpoint: Path | None
    loss: float | None
    validation: Mapping[str, float]


def train_in_process(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    resume: str = "auto",
    init_from: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
) -> TrainingResult:
    """Train in this process, as `nar-scale train` does in one of its own; may be called several times.

    To be called in the main thread. Interrupting it, by Ctrl-C or the notebook's stop button, saves and returns;
    the same call goes on from there. Messages go to the standard output, unless the logger `nar_scale` has handlers.
    Afterwards signals, environment, warnings, levels of loggers, random numbers and threads are as before, and there is
    no process group.

    Args:
        config: the YAML file of the run, or its sections as a dictionary or a `Config`, which name their
            `training.run_directory`; that of a file is `runs/NAME` by default.
        overrides: settings that win over it: `{"training.steps": 200}`, or `["training.steps=200"]`.
        resume: `auto` for the newest good checkpoint of the run directory if there is one, `never`, or the path of a
            checkpoint.
        init_from: a consolidated or a training checkpoint whose weights a run that resumes nothing starts from.
        callbacks: called after those of the run itself.
        verbose: show the warnings and logs of libraries as well.

    Raises:
        UserError: anything the user can fix, such as a `ConfigError`; or another thread than the main one, or a process
            group of torch in this process.
    """
    settings = _settings(config, overrides)
    check_run(settings)
    if threading.current_thread() is not threading.main_thread():
        raise UserError("training takes over the signals, which only the main thread can; call it there")
    if dist.is_initialized():
        raise UserError(
            "this process has a process group already; end it by torch.distributed.destroy_process_group() first"
        )
    state = _StateAtEnd()
    with _process_kept():
        if not logging.getLogger("nar_scale").handlers:
            set_up_logging()
        if not verbose:
            silence_libraries()
        start = None if init_from is None else Path(init_from).expanduser()
        complete = train(settings, connect(), resume, start, (*callbacks, state))
    directory = Path(str(settings.training.run_directory))
    checkpoint = CheckpointStore(directory / "checkpoints").path(state.step)
    values = last_values(directory / METRICS_FILE)
    return TrainingResult(
        run_directory=directory,
        complete=complete,
        step=state.step,
        checkpoint=checkpoint if checkpoint.exists() else None,
        loss=values.get("loss"),
        validation={name: value for name, value in values.items() if name.startswith("validation_")},
    )


class _StateAtEnd(Callback):
    """Remembers where a run ended."""

    step = 0

    def on_run_end(self, run: RunView) -> None:
        self.step = run.state.step


def _settings(config: str | Path | Config | Mapping[str, Any], overrides: Mapping[str, Any] | Sequence[str]) -> Config:
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    if isinstance(config, (str, Path)):
        return load_config(Path(config).expanduser(), overrides)
    settings = override_config(config, overrides)
    if settings.training.run_directory is None:
        raise UserError("the configuration is no file to name the run after; give training.run_directory")
    return settings


@contextmanager
def _process_kept() -> Iterator[None]:
    """A `with` block after which the process is as it was before, and has no process group."""
    environment, hook, threads = dict(os.environ), threading.excepthook, torch.get_num_threads()
    logger = logging.getLogger("nar_scale")
    handlers, propagate = list(logger.handlers), logger.propagate
    levels = {name: logging.getLogger(name).level for name in ("nar_scale", "torch", "DeepSpeed")}
    devices = list(range(torch.cuda.device_count()))
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices):
            yield
    finally:
        _leave_job()
        os.environ.clear()
        os.environ.update(environment)
        threading.excepthook = hook
        torch.set_num_threads(threads)
        logger.handlers[:], logger.propagate = handlers, propagate
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        gc.collect()  # engines refer to themselves


def _leave_job() -> None:
    """End the process group, in DeepSpeed's books too, which would take its groups for those of the next run."""
    own_store.cache_clear()
    comm = sys.modules.get("deepspeed.comm")
    if comm is not None and comm.is_initialized():
        comm.destroy_process_group()
    disconnect()
