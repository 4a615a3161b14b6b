"""Errors of libraries that the user can fix, translated into one line that says how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nar_scale.config import Config
from nar_scale.errors import UserError
from nar_scale.files import remedy_for
from nar_scale.training.fault_tolerance.activity import Activity
from nar_scale.training.metrics.throughput import memory_usage

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
_PEER_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe", "connection was reset", "recvBytes"),
    *("remote process exited", "Connection refused", "failed to recv", "Connection was likely closed"),
    *("recvValue failed", "sendBytes failed"),
)


class PeerLostError(Exception):
    """Another process of the job has ended without reporting an error."""


@contextmanager
def translate_errors(activity: Activity, config: Config, device: torch.device) -> Iterator[None]:
    """A `with` block whose errors of memory, disk and connections are raised as errors that say what to do.

    Raises:
        UserError: memory or disk is exhausted, or a directory cannot be written.
        PeerLostError: a connection to another rank is lost.
    """
    try:
        yield
    except UserError:
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        problem = translate(error, activity, config, device)
        if problem is None:
            raise
        raise problem from None


def translate(error: BaseException, activity: Activity, config: Config, device: torch.device) -> Exception | None:
    """The error that says what to do about another one; None where nothing is known about it."""
    text = str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(part in text for part in _OUT_OF_MEMORY):
        return UserError(_out_of_memory(activity, config, device))
    if isinstance(error, OSError) and (remedy := remedy_for(error)):
        path = error.filename2 or error.filename or config.training.run_directory  # the second is what is renamed to
        return UserError(f"{path}: {error.strerror}; {remedy}, or set another training.run_directory")
    if any(part in text for part in _PEER_LOST):
        return PeerLostError(
            f"the connection to another process was lost in '{activity.name}'; it was killed or its node is gone "
            "(the system's log may say why, such as exhausted memory); run again, to go on from the last checkpoint"
        )
    return None


def _out_of_memory(activity: Activity, config: Config, device: torch.device) -> str:
    training, model = config.training, config.model
    changes = []
    if training.micro_batch_size > 1:
        changes.append(f"training.micro_batch_size below {training.micro_batch_size}")
    if model.activation_checkpointing != "full":
        changes.append("model.activation_checkpointing full")
    if training.zero_stage < 3:
        changes.append(f"training.zero_stage {training.zero_stage + 1} or more")
    if config.zero.offload_optimizer == "none":
        changes.append("zero.offload_optimizer cpu")
    changes.append(f"model.logits_chunk_size below {model.logits_chunk_size}")
    kind = "GPU" if device.type == "cuda" else "host"
    peak = memory_usage(device)["memory_gib"]
    return (
        f"out of {kind} memory in '{activity.name}', with micro-batches of {training.micro_batch_size} x "
        f"{model.max_seq_len} tokens and a peak of {peak:.1f} GiB; try {', '.join(changes)}"
    )
