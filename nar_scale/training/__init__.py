"""Training: the loop, the DeepSpeed engine, callbacks, checkpoints, metrics and fault tolerance."""

from nar_scale.processes import RESUMABLE_EXIT_STATUS
from nar_scale.training.distributed import World, connect, disconnect
from nar_scale.training.launch import dry_run, launch
from nar_scale.training.run import train

__all__ = ["RESUMABLE_EXIT_STATUS", "World", "connect", "disconnect", "dry_run", "launch", "train"]
