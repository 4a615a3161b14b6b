"""Models from and to other libraries."""

from nar_scale.interop.llama import export_llama
from nar_scale.interop.llama_import import import_llama
from nar_scale.interop.x_transformers import (
    XTransformersExport,
    export_x_transformers,
    from_x_transformers,
    to_x_transformers,
)

__all__ = [
    "XTransformersExport",
    "export_llama",
    "export_x_transformers",
    "from_x_transformers",
    "import_llama",
    "to_x_transformers",
]
