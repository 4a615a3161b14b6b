"""How many tasks `srun` starts on each node, and with how many CPUs, from what the job was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_PORT, _PORTS = 20_000, 12_000  # below the range from which the kernel takes ports by itself


@dataclass(frozen=True)
class Layout:
    """The tasks of a job.

    Attributes:
        tasks: in all.
        cpus_per_task: at least 1.
        options: of `srun` that differ from what `sbatch` was given.
    """

    tasks: int
    cpus_per_task: int
    options: tuple[str, ...]


def layout_of(environment: Mapping[str, str]) -> Layout:
    """One task for each GPU, also where the job was submitted with fewer tasks than GPUs; the CPUs are shared.

    Args:
        environment: of a batch script.
    """

    def number(name: str, default: int = 0) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdecimal() else default

    nodes = number("SLURM_NNODES", 1)
    tasks = number("SLURM_NTASKS", nodes)
    per_node = -(-tasks // nodes)
    cpus = number("SLURM_CPUS_ON_NODE", 1)
    gpus = number("SLURM_GPUS_ON_NODE")
    cpus_per_task = number("SLURM_CPUS_PER_TASK")
    options: tuple[str, ...] = ()
    if gpus > per_node:
        per_node, tasks, cpus_per_task = gpus, gpus * nodes, 0
        options = (f"--ntasks={tasks}", f"--ntasks-per-node={per_node}")
        if cpus < per_node:
            options += ("--overcommit",)
    return Layout(tasks, cpus_per_task or max(cpus // per_node, 1), options)


def port_of(job: str, step: int = 0) -> int:
    """The port at which the ranks of a step meet, unlike that of other steps and jobs of the same nodes."""
    return _FIRST_PORT + (int(job) + 1009 * step) % _PORTS if job.isdecimal() else _FIRST_PORT
