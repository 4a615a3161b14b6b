"""A generation worker: takes its share of the requests and leaves finished parts behind, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nar_scale.checkpoint import LoadedModel, WeightKind, load_exported
from nar_scale.errors import UserError
from nar_scale.evaluation import encode_png, image_grid
from nar_scale.files import create_atomically, write_atomically
from nar_scale.generation.requests import Request, assign_classes
from nar_scale.generation.sampling import Sample, SamplingOptions, generate_samples
from nar_scale.objectives import NonAutoregressiveWrapper

MANIFEST_FILE = "generation.json"


def generate(
    checkpoint: str | Path,
    output: str | Path,
    requests: Sequence[Request],
    options: SamplingOptions,
    *,
    worker: int = 0,
    workers: int = 1,
    batch_size: int = 16,
    part_size: int = 64,
    device: torch.device | str | None = None,
    weights: WeightKind = "model",
    progress: bool = True,
) -> list[Path]:
    """Generate one worker's share of the requests.

    The requests are cut into parts of `part_size`; part p belongs to worker p modulo `workers` and becomes
    `part-NNNNN.jsonl`, by rename. Parts that exist are skipped, so a worker can be killed and started again. Where
    tokens are pixels (`logging.image_shape`), each part is drawn first, as `part-NNNNN.png`.

    Args:
        worker: number of this worker, from 0.
        workers: how many share the requests.
        batch_size: sequences in a forward pass.
        device: a GPU if there is one and nothing else is given.
        weights: those of the last step, or their moving average.

    Returns:
        the paths of this worker's parts.

    Raises:
        UserError: bad arguments, classes that do not fit the model (see `assign_classes`), or an output directory
            that holds results of another checkpoint, other requests or other options.
    """
    if not 0 <= worker < workers:
        raise UserError(f"worker {worker} of {workers} does not exist; workers count from 0")
    if batch_size < 1 or part_size < 1 or not requests:
        raise UserError("the batch size, the part size and the number of requests must be at least 1")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device} was asked for, but torch finds no GPU; use cpu")
    output = Path(output)
    model = load_exported(checkpoint, device or ("cuda" if torch.cuda.is_available() else "cpu"), weights=weights)
    wrapper = model.wrapper
    num_classes = wrapper.num_classes if isinstance(wrapper, NonAutoregressiveWrapper) else None
    requests = assign_classes(requests, num_classes)
    manifest = {
        "checkpoint": _digest((Path(checkpoint) / "manifest.json").read_bytes()),
        "weights": weights,
        "requests": _digest(repr(list(requests)).encode()),
        "count": len(requests),
        "part_size": part_size,
        "model": {"step": model.info.step, "steps": model.info.decode.steps, "schedule": model.info.decode.schedule},
        "sampling": options.as_dict(),
    }
    claim_output(output, manifest)
    paths = []
    own_parts = range(worker, -(-len(requests) // part_size), workers)
    for part in tqdm(own_parts, desc=f"worker {worker}/{workers}", unit="part", disable=None if progress else True):
        path = output / f"part-{part:05d}.jsonl"
        if not path.exists():
            share = requests[part * part_size : (part + 1) * part_size]
            samples = list(generate_samples(model, share, options, batch_size))
            _draw(samples, model, path.with_suffix(".png"))
            lines = "".join(json.dumps(sample.as_dict(), ensure_ascii=False) + "\n" for sample in samples)
            write_atomically(path, lines.encode())
        paths.append(path)
    return paths


def _draw(samples: Sequence[Sample], model: LoadedModel, path: Path) -> None:
    """Draw those samples that are whole images, if the model makes images."""
    shape = model.config.logging.image_shape
    if shape is None:
        return
    whole = [sample.tokens for sample in samples if len(sample.tokens) == shape[0] * shape[1]]
    if whole:
        write_atomically(path, encode_png(image_grid(np.array(whole), shape, model.info.vocabulary_size)))


def claim_output(output: Path, manifest: dict[str, Any]) -> None:
    """Record what this output directory is for, as the first of several workers.

    Raises:
        UserError: it is for something else, or cannot be written.
    """
    path = output / MANIFEST_FILE
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            create_atomically(path, (json.dumps(manifest, indent=2) + "\n").encode())
        found = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror}") from None
    different = [name for name in manifest if found.get(name) != manifest[name]]
    if different:
        raise UserError(
            f"{output} holds results of another {' and other '.join(different)} (see {path.name}); "
            "choose another --output or remove it"
        )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
