"""Accelerators by name, with the figures of their data sheets."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from nar_scale.errors import UserError

USABLE_MEMORY = 0.95
"""The part of a device's memory, as its data sheet has it, that a run can fill: CUDA and NCCL take some themselves."""


@dataclass(frozen=True)
class Device:
    """An accelerator, and the node that its vendor sells it in.

    Attributes:
        name: what the command line calls it.
        torch_name: a part of `torch.cuda.get_device_name` that no other kind has.
        memory: in bytes.
        peak_flops: dense bf16 FLOP/s.
        memory_bandwidth: bytes/s.
        link_bandwidth: bytes/s in each direction, to the others of the node.
        network_bandwidth: bytes/s in each direction and for each device, to other nodes.
        host_bandwidth: bytes/s in each direction, to the memory of the node.
        devices_per_node: devices that the links connect.
        matrix_efficiency: the part of the peak that matrix products of a large model reach in a run; our estimate, from
            published runs.
        source: where the vendor's figures stand.
    """

    name: str
    torch_name: str
    memory: float
    peak_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    devices_per_node: int
    matrix_efficiency: float
    source: str


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_HOPPER, _AMPERE, _PCIE = 0.56, 0.72, 0.6

DEVICES = {
    device.name: device
    for device in (
        Device("h200", "H200", 141e9, 989e12, 4.8e12, 450e9, 50e9, 64e9, 8, _HOPPER, f"{_NVIDIA}/h200"),
        Device("h100", "H100", 80e9, 989e12, 3.35e12, 450e9, 50e9, 64e9, 8, _HOPPER, f"{_NVIDIA}/h100"),
        Device("b200", "B200", 180e9, 2250e12, 8e12, 900e9, 50e9, 64e9, 8, _HOPPER, f"{_NVIDIA}/hgx"),
        Device("a100-40", "A100-SXM4-40GB", 40e9, 312e12, 1.555e12, 300e9, 25e9, 32e9, 8, _AMPERE, f"{_NVIDIA}/a100"),
        Device("a100", "A100", 80e9, 312e12, 2.039e12, 300e9, 25e9, 32e9, 8, _AMPERE, f"{_NVIDIA}/a100"),
        Device("l40s", "L40S", 48e9, 362e12, 0.864e12, 32e9, 12.5e9, 32e9, 8, _PCIE, f"{_NVIDIA}/l40s"),
        Device("a10g", "A10G", 24e9, 70e12, 0.6e12, 32e9, 1.5e9, 32e9, 8, _PCIE, f"{_NVIDIA}/products/a10-gpu"),
    )
}
"""By name. The network is that of the usual node: 400 Gbit/s a device for Hopper and Blackwell, 200 for A100."""


def find_device(name: str) -> Device:
    """The device of a name, in small or capital letters.

    Raises:
        UserError: there is none.
    """
    known = name.lower()
    if known not in DEVICES:
        near = difflib.get_close_matches(known, DEVICES, n=1)
        remedy = f"did you mean {near[0]}?" if near else "choose one of them"
        raise UserError(f"no device {name!r} is known; known are {', '.join(DEVICES)}: {remedy}")
    return DEVICES[known]


def device_of(torch_name: str) -> Device | None:
    """The device that `torch.cuda.get_device_name` calls so, if it is known."""
    return next((device for device in DEVICES.values() if device.torch_name in torch_name), None)
