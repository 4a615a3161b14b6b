import logging
from typing import Any

import pytest
import torch

# The tensors of tests are small: on a busy machine threads that wait for each other cost ten times what they save.
torch.set_num_threads(1)

LAUNCHES = ("tests/distributed", "tests/slurm", "tests/generation")  # few tests, of minutes


@pytest.fixture(autouse=True)
def fresh_logging() -> None:
    """Undo what a command that ran in this process has set up, so that no test depends on those before it."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "nar_scale"]:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate, logger.disabled = True, False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LAUNCHES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where tests run in several processes, a file stays together, as do those that need the one cluster or GPU."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            together = ("tests/slurm/", "tests/gpu/")
            return next((directory for directory in together if file.startswith(directory)), file)

    config.option.loadscopereorder = False  # by number of tests
    return Scheduling(config, log)
