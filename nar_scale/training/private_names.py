"""The private names of torch that the package uses, with the version they were checked against.

`tests/training/test_private_names.py` fails with those that an installed version lacks. Those of DeepSpeed are in
`nar_scale/training/engine/private_names.py`.
"""

from __future__ import annotations

TORCH_VERSION = "2.13.0"

TORCH: dict[str, tuple[str, ...]] = {
    "torch.distributed.distributed_c10d": (
        "_get_default_store",
        "_set_pg_timeout",
        "default_pg_timeout",
        "default_pg_nccl_timeout",
    ),
    "torch": ("_assert_async",),
    "torch.ops.aten": (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    ),
}
"""By dotted name of a module, its attributes."""
