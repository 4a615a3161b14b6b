"""Train several configurations in one launch: a start of DeepSpeed costs more than a small run.

deepspeed train_cases.py FILE, a JSON list of [config file, [override, ...]]
"""

import json
import os
import signal
import sys
from pathlib import Path

from nar_scale.config import load_config
from nar_scale.logging_setup import set_up_logging, silence_libraries
from nar_scale.training import connect, disconnect, train
from nar_scale.training.callbacks.callback import Callback, RunView

STOP_AFTER, INIT_FROM = "stop_after=", "init_from="


class StopAfter(Callback):
    """Lets every rank be asked to stop before it begins with the step that is to be the last."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, run: RunView) -> None:
        if run.state.step == self.step - 1:
            os.kill(os.getpid(), signal.SIGUSR1)


set_up_logging()
silence_libraries()
world = connect()
for config_file, overrides in json.loads(Path(sys.argv[-1]).read_text()):
    stops = [int(override.removeprefix(STOP_AFTER)) for override in overrides if override.startswith(STOP_AFTER)]
    starts = [Path(override.removeprefix(INIT_FROM)) for override in overrides if override.startswith(INIT_FROM)]
    config = load_config(config_file, [each for each in overrides if not each.startswith((STOP_AFTER, INIT_FROM))])
    init_from = starts[0] if starts else None
    complete = train(config, world, init_from=init_from, callbacks=[StopAfter(step) for step in stops])
    assert complete == (not stops or stops[0] >= (config.training.steps or 0))
disconnect()
