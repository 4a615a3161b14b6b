"""The record of what was trained: a run directory keeps the settings of every step, whatever a later start says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nar_scale.checkpoint import CONFIG_FILE
from nar_scale.config import Config, dump_config, learned_settings, load_config, steps_of_run
from nar_scale.errors import ConfigError
from nar_scale.files import write_atomically

_DIFFERENCES_NAMED = 5


def is_finished(config: Config, checkpoint: Path, step: int) -> bool:
    """Whether a run has taken its last step, at the latest, when it wrote the checkpoint of a step.

    Raises:
        ConfigError: it has, but with other settings than those of `config`, which would have no effect.
    """
    if step < steps_of_run(config):
        return False
    changes = _changes(config, load_config(checkpoint / CONFIG_FILE))
    if changes:
        length = next(key for key in ("steps", "samples", "tokens") if getattr(config.training, key) is not None)
        named = [f"{key} {before}, not {now}" for key, (before, now) in list(changes.items())[:_DIFFERENCES_NAMED]]
        if len(changes) > _DIFFERENCES_NAMED:
            named.append(f"and {len(changes) - _DIFFERENCES_NAMED} more differences")
        raise ConfigError(
            f"{checkpoint} is of step {step} already, trained with {'; '.join(named)}: set "
            f"{'it' if len(changes) == 1 else 'them'} back; to train on set training.{length} beyond step {step}, or "
            "to train anew another training.run_directory"
        )
    return True


def write_record(config: Config, resolved: Mapping[str, Any], directory: Path, resumed: Path | None, step: int) -> None:
    """Write the settings of a run that goes on from a step into its directory, as `config.yaml` and `deepspeed.json`.

    Where the steps before had other settings, those are kept as `config-until-step-NNNNNNNNN.yaml`.

    Args:
        resolved: what DeepSpeed is given.
        directory: of the run.
        resumed: the checkpoint that the run goes on from, if any.

    Raises:
        OSError: the directory cannot be written.
    """
    if resumed is not None:
        before = load_config(resumed / CONFIG_FILE)
        if _changes(config, before):
            write_atomically(directory / f"config-until-step-{step:09d}.yaml", dump_config(before).encode())
    write_atomically(directory / CONFIG_FILE, dump_config(config).encode())
    write_atomically(directory / "deepspeed.json", (json.dumps(resolved, indent=2) + "\n").encode())


def _changes(config: Config, before: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ and have a part in what is learned: their values before and now, None for no value."""
    old, new = learned_settings(before), learned_settings(config)
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
