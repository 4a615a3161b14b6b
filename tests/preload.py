"""What a test process imports before it forks: imports take longer than most of what the forks are for."""

import importlib

_MODULES = (
    *("deepspeed", "transformers", "torch._dynamo", "torch.utils.tensorboard"),
    *("nar_scale.training", "nar_scale.generation", "nar_scale.reporting.runs", "nar_scale.interop"),
    *("nar_scale.fleet", "nar_scale.planning.command"),
)


def import_everything() -> None:
    """Import what the commands import, none of which starts a thread, which a fork would lose."""
    for name in _MODULES:
        importlib.import_module(name)
