"""Train several configurations in one launch and note what the net has seen, on each rank.

deepspeed sequence_cases.py FILE, a JSON list of [config file, [override, ...]]; writes RUN/seen.json, by rank the
digests of the token ids of all forward passes in training
"""

import json
import sys
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from nar_scale.config import load_config
from nar_scale.logging_setup import set_up_logging, silence_libraries
from nar_scale.model import TransformerWrapper
from nar_scale.training import connect, disconnect, train

seen: list[str] = []


def watch(module: object, inputs: tuple) -> None:
    if isinstance(module, TransformerWrapper) and module.training:
        seen.append(sha256(inputs[0].cpu().numpy().tobytes()).hexdigest())


# whether gradients get through a traced exchange is the question; generating fast code would take four times as long
torch.compile = partial(torch.compile, backend="aot_eager")
set_up_logging()
silence_libraries()
world = connect()
register_module_forward_pre_hook(watch)
for config_file, overrides in json.loads(Path(sys.argv[-1]).read_text()):
    config = load_config(config_file, overrides)
    seen.clear()
    assert train(config, world)
    by_rank = world.gather(seen)
    if world.is_main:
        (Path(str(config.training.run_directory)) / "seen.json").write_text(json.dumps(by_rank))
disconnect()
