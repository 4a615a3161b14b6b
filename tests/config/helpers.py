"""A small valid configuration, and variations of it."""

import copy
from typing import Any

from nar_scale.config import Config, check_run, validate_config

VALUES: dict[str, Any] = {
    "model": {"dim": 16, "depth": 2, "heads": 2, "max_seq_len": 12},
    "objective": {"kind": "non_autoregressive"},
    "data": {"directory": "data"},
    "optimizer": {"learning_rate": 0.001},
    "training": {"steps": 10, "global_batch_size": 8, "micro_batch_size": 2},
}


def config_with(**changes: Any) -> Config:
    """The valid values with `section.key` set to others, as a run may start with them."""
    values = copy.deepcopy(VALUES)
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    config = validate_config(values, "a test")
    check_run(config)
    return config
