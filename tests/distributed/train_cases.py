"""Train several configurations in one launch: a start of DeepSpeed costs more than a small run.

deepspeed train_cases.py FILE, a JSON list of [config file, [override, ...]]
"""

import json
import sys
from pathlib import Path

from nar_scale.config import load_config
from nar_scale.training import connect, disconnect, train
from nar_scale.training.quiet import quieten_libraries

quieten_libraries()
world = connect()
for config_file, overrides in json.loads(Path(sys.argv[-1]).read_text()):
    assert train(load_config(config_file, overrides), world)
disconnect()
