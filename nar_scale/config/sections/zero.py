"""The section `zero`: where ZeRO keeps what it shards, and how it sends it."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic import model_validator as validator

from nar_scale.config.sections.section import LocalPath, Operational, Section, Unit

Offload = Literal["none", "cpu", "nvme"]


class ZeroConfig(Section):
    """Where ZeRO keeps what it shards, and how it sends it; the stage is `training.zero_stage`."""

    offload_optimizer: Annotated[Offload, Operational()] = Field(
        default="none",
        description="Keep master weights, gradients and moments in the memory of the node or on its disk, where steps "
        "are then taken. ZeRO 1 to 3; `nvme` needs 3.",
    )
    offload_parameters: Annotated[Offload, Operational()] = Field(
        default="none",
        description="Keep the weights of forward and backward pass in the memory of the node or on its disk. ZeRO 3.",
    )
    offload_directory: Annotated[LocalPath | None, Operational()] = Field(
        default=None,
        description="Directory on a fast disk of each node, for offload to `nvme`.",
    )
    hpz_partition_size: Annotated[PositiveInt, Operational(), Unit("ranks")] = Field(
        default=1,
        description="ZeRO++: ranks of a node that hold another whole copy of the weights, so that the backward pass "
        "gathers within the node; 1 for none. ZeRO 3.",
    )
    quantized_weights: bool = Field(
        default=False,
        description="ZeRO++: gather weights as int8. ZeRO 3.",
    )
    quantized_gradients: bool = Field(
        default=False,
        description="ZeRO++: reduce gradients as int4. ZeRO 3.",
    )

    @validator(mode="after")
    def _disk_fits(self) -> "ZeroConfig":
        if ("nvme" in (self.offload_optimizer, self.offload_parameters)) != (self.offload_directory is not None):
            raise ValueError("offload to nvme and offload_directory are needed together: give both or neither")
        return self
