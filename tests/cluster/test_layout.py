import pytest

from nar_scale.cluster.layout import Layout, layout_of, port_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"NNODES": 2, "NTASKS": 4, "CPUS_PER_TASK": 2, "CPUS_ON_NODE": 8}, Layout(4, 2, ())),
        ({"NNODES": 2, "CPUS_ON_NODE": 4}, Layout(2, 4, ())),
        (
            {"NNODES": 2, "NTASKS": 2, "CPUS_PER_TASK": 4, "CPUS_ON_NODE": 4, "GPUS_ON_NODE": 2},
            Layout(4, 2, ("--ntasks=4", "--ntasks-per-node=2")),
        ),
        (
            {"NNODES": 2, "NTASKS": 2, "CPUS_PER_TASK": 16, "CPUS_ON_NODE": 16, "GPUS_ON_NODE": 8},
            Layout(16, 2, ("--ntasks=16", "--ntasks-per-node=8")),
        ),
        (
            {"NNODES": 1, "NTASKS": 1, "CPUS_ON_NODE": 1, "GPUS_ON_NODE": 2},
            Layout(2, 1, ("--ntasks=2", "--ntasks-per-node=2", "--overcommit")),
        ),
        ({"NNODES": 2, "NTASKS": 16, "CPUS_ON_NODE": 64, "GPUS_ON_NODE": 8}, Layout(16, 8, ())),
    ],
)
def test_one_task_for_each_gpu(given, expected):
    assert layout_of({f"SLURM_{name}": str(value) for name, value in given.items()}) == expected


def test_ports_of_jobs_and_steps_differ():
    ports = {port_of(str(job), step) for job in (1, 2, 12_001 + 7) for step in range(3)}
    assert len(ports) == 9
    assert all(20_000 <= port < 32_000 for port in ports)
