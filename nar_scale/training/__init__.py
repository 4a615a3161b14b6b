"""Training: the step loop, the DeepSpeed engine, saving, monitoring and stopping."""

from nar_scale.training.distributed import World, connect, disconnect
from nar_scale.training.launch import dry_run, launch
from nar_scale.training.run import train
from nar_scale.training.stop import RESUMABLE_EXIT_STATUS

__all__ = ["RESUMABLE_EXIT_STATUS", "World", "connect", "disconnect", "dry_run", "launch", "train"]
