"""The weights of a Hugging Face Llama directory, by the names that they have here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nar_scale.checkpoint.shards import read_layout, read_weight
from nar_scale.errors import CheckpointError
from nar_scale.interop.llama_layout import llama_names
from nar_scale.objectives import Objective

_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NET = "net."
_TABLE, _HEAD = llama_names("token_emb.weight")[0], llama_names("to_logits.weight")[0]
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # early files hold it; it is no weight
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class LlamaWeights(Mapping[str, Tensor]):
    """The weights of a model, read when they are asked for, so that one at a time is in memory.

    Args:
        directory: in Hugging Face's Llama layout.
        wrapper: the model that is to have them; it may be on the meta device.

    Attributes:
        dtype: of all of them: that of the files, or float32 where it differs between weights.

    Raises:
        CheckpointError: a file that is missing or cannot be read, or a weight that is missing, unknown, of another
            shape than the model's, or no floating-point number of 16 or 32 bits.
    """

    def __init__(self, directory: Path, wrapper: Objective):
        self._directory = directory
        self._names = {name: llama_names(name.removeprefix(_NET)) for name, _ in wrapper.named_parameters()}
        self._files: dict[str, Path] = {}
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for file in _weight_files(directory):
            of_file = {name: value for name, value in read_layout(file).items() if not _COMPUTED.fullmatch(name)}
            layout.update(of_file)
            self._files.update(dict.fromkeys(of_file, file))
        self._check_tied_head(layout)
        self._check(layout, wrapper)
        dtypes = {dtype for dtype, _ in layout.values()}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    def __getitem__(self, name: str) -> Tensor:
        parts = [read_weight(self._files[part], part) for part in self._names[name]]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _check_tied_head(self, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        """Some files of tied embeddings hold the head as well: as the same tensor, it can be left out."""
        wanted = {part for parts in self._names.values() for part in parts}
        if _HEAD in wanted or _HEAD not in layout or _TABLE not in layout:
            return
        if not torch.equal(read_weight(self._files[_HEAD], _HEAD), read_weight(self._files[_TABLE], _TABLE)):
            raise CheckpointError(
                f"{self._files[_HEAD]}: {_HEAD!r} differs from {_TABLE!r}, although config.json says "
                "tie_word_embeddings; set that to false there to keep both"
            )
        del layout[_HEAD]

    def _check(self, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], wrapper: Objective) -> None:
        shapes: dict[str, list[int]] = {}
        for name, parameter in wrapper.named_parameters():
            parts = self._names[name]
            shapes |= {part: [parameter.shape[0] // len(parts), *parameter.shape[1:]] for part in parts}
        lacking = [name for name in shapes if name not in layout]
        if lacking:
            raise CheckpointError(
                f"{self._directory} lacks the weight {lacking[0]!r} ({len(lacking)} in all), which its config.json "
                "describes"
            )
        for name, (dtype, shape) in layout.items():
            file = self._files[name]
            if name not in shapes:
                unknown = sum(other not in shapes for other in layout)
                raise CheckpointError(
                    f"{file} holds {name!r} ({unknown} in all), which the Llama model of its config.json does not have"
                )
            if list(shape) != shapes[name]:
                raise CheckpointError(
                    f"{file}: {name!r} has shape {list(shape)}, but config.json makes it {shapes[name]}"
                )
            if dtype not in _DTYPES:
                raise CheckpointError(f"{file}: {name!r} is {dtype}; save the weights as float32, bfloat16 or float16")


def _weight_files(directory: Path) -> list[Path]:
    """The one file of weights, or those that the index names."""
    single, index = directory / _FILE, directory / _INDEX
    if single.exists():
        return [single]
    if not index.exists():
        raise CheckpointError(
            f"{directory} has no {_FILE} and no {_INDEX}; pickled weights are not read: save the model as safetensors"
        )
    try:
        names = sorted({Path(str(name)).name for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is no index of weights; fetch it anew") from None
    for name in names:
        if not (directory / name).is_file():
            raise CheckpointError(f"{directory} lacks the file {name}, which {_INDEX} names; fetch it")
    return [directory / name for name in names]
