"""The device that a user names."""

from __future__ import annotations

import torch

from nar_scale.errors import UserError


def find_device(name: torch.device | str | None = None) -> torch.device:
    """The device of this name, on which tensors can be made; if None, a GPU if there is one, else the CPU.

    Raises:
        UserError: torch knows no such device, or this machine does not have it.
    """
    usable = "cpu or cuda" if torch.cuda.is_available() else "cpu"
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise UserError(f"there is no device {str(name)!r}; choose {usable}") from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):  # which of them depends on how torch was built
        raise UserError(f"torch cannot use the device {str(name)!r} on this machine; choose {usable}") from None
    return device
