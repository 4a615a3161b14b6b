"""A terminal for the user: our lines, not the libraries'."""

from __future__ import annotations

import logging
import os
import threading
import warnings


def quieten_libraries() -> None:
    """Silence the warnings and logs of torch, DeepSpeed and TensorBoard; errors still come through."""
    os.environ["DS_ACCELERATOR"] = _accelerator()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.utils import logger

    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # which prints
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        handler.setLevel(logging.ERROR)
    threading.excepthook = _leave_to_main_thread


def _leave_to_main_thread(problem: threading.ExceptHookArgs) -> None:
    """Say nothing of what TensorBoard's thread cannot write: the next call of its writer raises it again."""
    if type(problem.thread).__module__.split(".")[0] != "tensorboard":
        threading.__excepthook__(problem)


def _accelerator() -> str:
    """DeepSpeed warns when it has to find out by itself."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
