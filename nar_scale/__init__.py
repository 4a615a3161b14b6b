"""Train and use autoregressive and non-autoregressive token transformers.

>>> from nar_scale import TransformerWrapper, Encoder, NonAutoregressiveWrapper
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nar_scale.checkpoint import load_consolidated as load
    from nar_scale.interop import from_x_transformers, to_x_transformers
    from nar_scale.model import Decoder, Encoder, TransformerWrapper
    from nar_scale.objectives import (
        AutoregressiveWrapper,
        BlockDiffusionWrapper,
        HybridWrapper,
        NonAutoregressiveWrapper,
    )

__all__ = [
    "AutoregressiveWrapper",
    "BlockDiffusionWrapper",
    "Decoder",
    "Encoder",
    "HybridWrapper",
    "NonAutoregressiveWrapper",
    "TransformerWrapper",
    "from_x_transformers",
    "load",
    "to_x_transformers",
]

_MODULES = {
    "checkpoint": {"load": "load_consolidated"},
    "interop": {name: name for name in ("from_x_transformers", "to_x_transformers")},
    "model": {name: name for name in ("Decoder", "Encoder", "TransformerWrapper")},
    "objectives": {name: name for name in __all__ if name.endswith("Wrapper") and name != "TransformerWrapper"},
}
_HOMES = {public: (module, name) for module, names in _MODULES.items() for public, name in names.items()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, which `nar-scale --help` shall not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, origin = _HOMES[name]
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), origin)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
