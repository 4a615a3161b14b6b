import pytest
import torch

# The tensors of tests are small: on a busy machine threads that wait for each other cost ten times what they save.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, a file stays together, as do those that need the one SLURM cluster."""
    for item in items:
        group = "slurm" if "slurm" in item.path.parts else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
