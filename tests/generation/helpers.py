"""A consolidated checkpoint without a training run."""

import torch

from nar_scale.checkpoint import ModelInfo, describe_decoding, run_probe
from nar_scale.checkpoint.exported import write_exported
from nar_scale.config import validate_config
from nar_scale.objectives import build_wrapper

KINDS = ("autoregressive", "non_autoregressive")


def export(directory, kind):
    values = {
        "model": {"dim": 16, "depth": 1, "heads": 2, "max_seq_len": 24},
        "objective": {"kind": kind, "steps": 4},
        "data": {"directory": "nowhere"},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
    }
    config = validate_config(values, "the test")
    torch.manual_seed(0)
    wrapper = build_wrapper(config, 257)
    info = ModelInfo(257, "byte", 1, 1, "fp32", describe_decoding(config, wrapper, 256))
    write_exported(directory, wrapper, config, info, run_probe(wrapper))
    return directory
