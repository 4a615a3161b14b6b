"""A generation worker: generates its part of the requests and writes finished files, each of them atomically."""

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
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.evaluation import encode_png, image_grid
from nar_scale.files import create_atomically, write_atomically
from nar_scale.generation.requests import Request, assign_classes
from nar_scale.generation.sampling import Sample, generate_samples

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
    """Generate the requests of one worker.

    The requests are cut into parts of `part_size`. Part p belongs to worker p modulo `workers` and is written as
    `part-NNNNN.jsonl`, by renaming a finished file. Parts that exist are skipped, so that a worker can be killed and
    started again. Where tokens are pixels (`logging.image_shape`), each part is first drawn as `part-NNNNN.png`.

    Args:
        checkpoint: the directory of a consolidated checkpoint.
        output: the directory of the results, which is created if it does not exist.
        requests: those of all workers.
        options: how to sample.
        worker: number of this worker, from 0.
        workers: number of workers.
        batch_size: sequences in a forward pass, at most.
        part_size: samples in a file.
        device: of the model; if None, a GPU if there is one.
        weights: `model` for those of the last step, `ema` for their moving average.
        progress: whether a progress bar is shown, where the output is a terminal.

    Returns:
        the paths of the parts of this worker.

    Raises:
        UserError: an argument is out of range, a class does not fit the model (see `assign_classes`), or the output
            directory holds results of another checkpoint, of other requests or of other options.
    """
    if not 0 <= worker < workers:
        raise UserError(f"worker {worker} of {workers} does not exist; workers count from 0")
    if batch_size < 1 or part_size < 1 or not requests:
        raise UserError("the batch size, the part size and the number of requests must be at least 1")
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {device} was asked for, but torch finds no GPU; use cpu")
    output = Path(output)
    model = load_exported(checkpoint, device or ("cuda" if torch.cuda.is_available() else "cpu"), weights=weights)
    requests = assign_classes(requests, model.wrapper.num_classes)
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
            local_positions = requests[part * part_size : (part + 1) * part_size]
            samples = list(generate_samples(model, local_positions, options, batch_size))
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
    """Record what the output directory holds; of several workers the first one does.

    Args:
        output: the directory, which is created if it does not exist.
        manifest: everything that the results depend on.

    Raises:
        UserError: another manifest is recorded, or the directory cannot be written.
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
