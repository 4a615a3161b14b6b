"""How many elements of the parameters a rank holds under ZeRO, padding included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from nar_scale.config import OptimizerConfig
from nar_scale.model.layers import Embedding
from nar_scale.model.parameters import full_size, is_matrix, muon_matrices
from nar_scale.model.stack import Block

_ALIGNMENT = 2  # elements; ZeRO 1 and 2 pad each group of parameters to a multiple of this times the ranks


@dataclass(frozen=True)
class ParameterSizes:
    """The sizes of a model's parameters in elements, by the group that the optimizer has them in.

    Attributes:
        groups: for each group, the sizes of its parameters.
        moments: for each group, how many numbers of its own the optimizer keeps of a weight.
        largest_block: elements of the largest block of the network.
    """

    groups: tuple[tuple[int, ...], ...]
    moments: tuple[int, ...]
    largest_block: int = 0

    @classmethod
    def of(cls, wrapper: nn.Module, optimizer: OptimizerConfig) -> ParameterSizes:
        """Those of a wrapper on any device: matrices that are decayed, all that is not, and what Muon moves."""
        known = _KNOWN.setdefault(wrapper, {})
        if optimizer.kind not in known:
            known[optimizer.kind] = cls._count(wrapper, optimizer)
        return known[optimizer.kind]

    @classmethod
    def _count(cls, wrapper: nn.Module, optimizer: OptimizerConfig) -> ParameterSizes:
        tables = {id(layer.weight) for layer in wrapper.modules() if isinstance(layer, Embedding)}
        of_muon = {id(p) for p in muon_matrices(wrapper).values()} if optimizer.kind == "muon" else set()
        groups: tuple[list[int], list[int], list[int]] = ([], [], [])
        for parameter in wrapper.parameters():
            if parameter.requires_grad:
                decayed = is_matrix(parameter) and id(parameter) not in tables
                groups[2 if id(parameter) in of_muon else 0 if decayed else 1].append(full_size(parameter))
        kept = 1 if optimizer.kind == "lion" else 2
        found = [(tuple(group), moments) for group, moments in zip(groups, (kept, kept, 1)) if group]
        blocks = (module for module in wrapper.modules() if isinstance(module, Block))
        largest = max((sum(map(full_size, block.parameters())) for block in blocks), default=0)
        return cls(tuple(group for group, _ in found), tuple(moments for _, moments in found), largest)

    @cached_property
    def total(self) -> int:
        """Elements of all parameters."""
        return sum(map(sum, self.groups))

    def padded(self, ranks: int) -> int:
        """Elements of all groups, each padded for so many ranks, as ZeRO 1 and 2 divide them."""
        return ranks * self.shard(2, ranks)

    def shards(self, stage: int, ranks: int) -> list[int]:
        """Elements of each group whose master weights and moments a rank holds.

        ZeRO 1 and 2 divide a group that is padded to an even share; ZeRO 3 divides each parameter by itself, so that a
        rank holds the part of one, rounded up.
        """
        if stage == 0:
            return [sum(group) for group in self.groups]
        if stage < 3:
            unit = _ALIGNMENT * ranks
            return [-(-sum(group) // unit) * _ALIGNMENT for group in self.groups]
        return [sum(-(-size // ranks) for size in group) for group in self.groups]

    def shard(self, stage: int, ranks: int) -> int:
        """Elements of all groups whose master weights a rank holds."""
        return sum(self.shards(stage, ranks))

    def moment_elements(self, stage: int, ranks: int) -> int:
        """Elements of the optimizer's moments that a rank holds."""
        return sum(moments * shard for moments, shard in zip(self.moments, self.shards(stage, ranks)))

    def persistent(self, zero: Mapping[str, Any]) -> int:
        """Elements of parameters so small that ZeRO 3 keeps them whole as well.

        Args:
            zero: the section `zero_optimization` of the DeepSpeed configuration.
        """
        threshold = zero["stage3_param_persistence_threshold"]
        return sum(size for group in self.groups for size in group if size <= threshold)

    def retained(self, zero: Mapping[str, Any]) -> int:
        """Elements of the other parameters that ZeRO 3 does not release between forward and backward pass.

        Their next use is within `stage3_max_reuse_distance` elements, or has been seen by the prefetcher: the distance
        from the end of the forward pass counts twice, there and back.
        """
        if zero["stage3_max_live_parameters"] == 0:
            return 0
        distance = max(zero["stage3_max_reuse_distance"], zero["stage3_prefetch_bucket_size"])
        return min(self.total - self.persistent(zero), distance // 2)


# a plan asks for each of hundreds of settings, and to walk through the modules takes longer than all the rest
_KNOWN: WeakKeyDictionary[nn.Module, dict[str, ParameterSizes]] = WeakKeyDictionary()
