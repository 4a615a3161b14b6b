"""Whether a run is complete, from its directory alone, so that a job that finds nothing to do ends before it begins."""

from __future__ import annotations

from pathlib import Path

from nar_scale.cluster.attempts import COMPLETE, newest_step, read_attempts
from nar_scale.config import Config, dump_config, steps_of_run


def is_complete(config: Config, run_directory: Path) -> bool:
    """Whether an attempt has recorded that the run is complete, which had the same settings as `config` in every key.

    Where a setting differs the ranks are to say what that means, and where an attempt was killed after its last
    checkpoint they have still to do what follows it.

    Args:
        config: that the next attempt would have.
        run_directory: of the run.
    """
    step = newest_step(run_directory)
    if not step or step < steps_of_run(config):
        return False
    if not any(attempt.why == COMPLETE and attempt.step == step for attempt in read_attempts(run_directory)):
        return False
    try:
        return (run_directory / "config.yaml").read_text() == dump_config(config)
    except (OSError, ValueError):
        return False
