"""A generation worker: generates its part of the requests and writes finished files, each of them atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nar_scale.checkpoint import LoadedModel, WeightKind
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.evaluation import encode_png, image_grid
from nar_scale.files import create_atomically, remedy_for, write_atomically
from nar_scale.generation.opening import open_model
from nar_scale.generation.requests import Request
from nar_scale.generation.sampling import Sample, generate_samples
from nar_scale.progress import kept_at_interrupt, with_progress

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
    skip_faults: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Generate the requests of one worker.

    All requests are looked at before the weights are loaded and before anything is written. They are cut into parts of
    `part_size`. Part p belongs to worker p modulo `workers` and is written as `part-NNNNN.jsonl`, by renaming a
    finished file. Parts that exist are skipped, so that a worker can be killed and started again. Where tokens are
    pixels (`logging.image_shape`), each part is first drawn as `part-NNNNN.png`.

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
        skip_faults: let the result of a request that has a fault (see `Request`), or that the model cannot take, be an
            `error`, instead of refusing all requests.
        progress: whether a progress bar is shown, where the output is a terminal.

    Returns:
        the paths of the parts of this worker.

    Raises:
        UserError: an argument is out of range, there is no such device, a request cannot be generated, the output
            cannot be written, or it holds results of another checkpoint, of other requests or of other options.
    """
    if not 0 <= worker < workers:
        raise UserError(f"worker {worker} of {workers} does not exist; workers count from 0")
    if batch_size < 1 or part_size < 1 or not requests:
        raise UserError("the batch size, the part size and the number of requests must be at least 1")
    output, checkpoint = Path(output), Path(checkpoint)
    model, decoding, requests = open_model(
        checkpoint, requests, options, device=device, weights=weights, skip_faults=skip_faults
    )
    manifest = {
        "checkpoint": _digest((checkpoint / "manifest.json").read_bytes()),
        "weights": weights,
        "requests": _digest(json.dumps([request.as_dict() for request in requests]).encode()),
        "count": len(requests),
        "part_size": part_size,
        "model": {"step": model.info.step, "schedule": model.info.decode.schedule},
        "decoding": decoding.model_dump(mode="json"),
        "sampling": {"length": options.length, "seed": options.seed},
    }
    claim_output(output, manifest)
    paths = []
    own_parts = range(worker, -(-len(requests) // part_size), workers)
    with kept_at_interrupt(f"finished parts are kept in {output}; the same command makes the others"):
        for part in with_progress(own_parts, f"worker {worker}/{workers}", "part", enabled=progress):
            path = output / f"part-{part:05d}.jsonl"
            if not path.exists():
                _generate_part(path, requests[part * part_size : (part + 1) * part_size], model, options, batch_size)
            paths.append(path)
    return paths


def _generate_part(
    path: Path, requests: Sequence[Request], model: LoadedModel, options: SamplingOptions, batch_size: int
) -> None:
    """Write the results of some requests: one JSON object a line, in order, and of a request with a fault the error."""
    samples = list(generate_samples(model, [one for one in requests if one.fault is None], options, batch_size))
    results = {request.number: request.as_dict() for request in requests}
    results |= {sample.request.number: sample.as_dict() for sample in samples}
    lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results.values())
    try:
        _draw(samples, model, path.with_suffix(".png"))
        write_atomically(path, lines.encode())
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The results in finished parts, in order; each has a `number`, and `tokens` or an `error`.

    Raises:
        UserError: a part cannot be read, or is no part.
    """
    try:
        return [json.loads(line) for path in paths for line in path.read_bytes().split(b"\n") if line]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "they are damaged; remove the part"
        raise UserError(f"cannot read the results {', '.join(map(str, paths))}: {reason}") from None


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
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise _cannot_write(output, error) from None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged; choose another --output or remove it")
    different = [name for name in manifest if found.get(name) != manifest[name]]
    if different:
        raise UserError(
            f"{output} holds results of another {' and other '.join(different)} (see {path.name}); "
            "choose another --output or remove it"
        )


def _cannot_write(path: Path, error: OSError) -> UserError:
    known = remedy_for(error)
    remedy = (
        f"{known} and run the same command again, which keeps finished parts" if known else "choose another --output"
    )
    return UserError(f"cannot write {path}: {error.strerror}; {remedy}")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
