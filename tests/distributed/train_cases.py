"""Train several configurations in one launch: a start of DeepSpeed costs more than a small run.

deepspeed train_cases.py FILE, a JSON list of [config file, [override, ...]]
"""

import json
import os
import signal
import sys
from pathlib import Path

from nar_scale.config import load_config
from nar_scale.logging_setup import quieten_libraries
from nar_scale.training import connect, disconnect, train
from nar_scale.training.trainer import Trainer

STOP_AFTER = "stop_after="


def stop_after(step: int) -> None:
    """Let every rank be asked to stop as it begins with the last step before this one is complete."""
    load = Trainer.load_micro_batches

    def loading(trainer: Trainer) -> object:
        if trainer.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return load(trainer)

    Trainer.load_micro_batches = loading  # type: ignore[method-assign, assignment]


quieten_libraries()
world = connect()
load_micro_batches = Trainer.load_micro_batches
for config_file, overrides in json.loads(Path(sys.argv[-1]).read_text()):
    stops = [int(override.removeprefix(STOP_AFTER)) for override in overrides if override.startswith(STOP_AFTER)]
    for step in stops:
        stop_after(step)
    config = load_config(config_file, [override for override in overrides if not override.startswith(STOP_AFTER)])
    complete = train(config, world)
    assert complete == (not stops or stops[0] >= (config.training.steps or 0))
    Trainer.load_micro_batches = load_micro_batches  # type: ignore[method-assign]
disconnect()
