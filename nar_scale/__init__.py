"""Train and use autoregressive and non-autoregressive token transformers.

>>> nar_scale.prepare(["notes.txt"], "data/notes", seq_len=128)
>>> run = nar_scale.train("notes.yaml")
>>> nar_scale.consolidate(run.run_directory, "exported/notes")
>>> nar_scale.load("exported/notes").generate("Once upon")

>>> from nar_scale import TransformerWrapper, Encoder, NonAutoregressiveWrapper
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nar_scale.checkpoint import consolidate
    from nar_scale.data import prepare
    from nar_scale.generation import load
    from nar_scale.interop import from_x_transformers, to_x_transformers
    from nar_scale.model import Decoder, Encoder, TransformerWrapper
    from nar_scale.objectives import (
        AutoregressiveWrapper,
        BlockDiffusionWrapper,
        HybridWrapper,
        NonAutoregressiveWrapper,
    )
    from nar_scale.training.in_process import train_in_process as train

    __version__: str

__all__ = [
    "AutoregressiveWrapper",
    "BlockDiffusionWrapper",
    "Decoder",
    "Encoder",
    "HybridWrapper",
    "NonAutoregressiveWrapper",
    "TransformerWrapper",
    "__version__",
    "consolidate",
    "from_x_transformers",
    "load",
    "prepare",
    "to_x_transformers",
    "train",
]

_MODULES = {
    "checkpoint": {"consolidate": "consolidate"},
    "data": {"prepare": "prepare"},
    "generation": {"load": "load"},
    "interop": {name: name for name in ("from_x_transformers", "to_x_transformers")},
    "model": {name: name for name in ("Decoder", "Encoder", "TransformerWrapper")},
    "objectives": {name: name for name in __all__ if name.endswith("Wrapper") and name != "TransformerWrapper"},
    "training.in_process": {"train": "train_in_process"},
}
_HOMES = {public: (module, name) for module, names in _MODULES.items() for public, name in names.items()}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, which `nar-scale --help` shall not."""
    if name == "__version__":
        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, origin = _HOMES[name]
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), origin)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
