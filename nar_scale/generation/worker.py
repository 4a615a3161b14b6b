"""A generation worker: one of any number of processes that share the requests of a directory of results."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nar_scale.checkpoint import LoadedModel, WeightKind
from nar_scale.config import SamplerConfig
from nar_scale.decoding import SamplingOptions
from nar_scale.errors import UserError
from nar_scale.evaluation import encode_png, image_grid
from nar_scale.files import write_atomically
from nar_scale.fleet import Holder, Layout, SharedDirectory, Units, Worker, claim_output
from nar_scale.fleet.claims import LEASE_SECONDS
from nar_scale.fleet.parts import JSONL, read_part
from nar_scale.fleet.record import RECORD_FILE
from nar_scale.generation.batch_size import BatchSize, choose_batch_size
from nar_scale.generation.encoding import check_requests, refuse_faults
from nar_scale.generation.model_choice import FixedModel, FollowedModel, Models
from nar_scale.generation.requests import Request, RequestList, RequestSource
from nar_scale.generation.sampling import check_options, generate_batches
from nar_scale.model.devices import find_device
from nar_scale.progress import progress_bar

_logger = logging.getLogger(__name__)

_CHECKED_AT_ONCE = 1024
_SECONDS_BETWEEN_LINES = 10.0


def generate(
    checkpoint: str | Path,
    output: str | Path,
    requests: Sequence[Request] | RequestSource,
    options: SamplingOptions,
    *,
    batch_size: int | Literal["auto"] = 16,
    part_size: int = 64,
    device: torch.device | str | None = None,
    weights: WeightKind = "model",
    skip_faults: bool | None = False,
    progress: bool = True,
    format: str = JSONL,
    follow: bool = False,
    lease_seconds: float = LEASE_SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Generate all requests, with whoever else works on the same output.

    The requests are cut into parts of `part_size`, which workers claim, see docs/fleet.md. Each part is written as
    `part-NNNNN.jsonl` or `.tar`, by renaming a finished file. What exists is kept, so that a worker can be killed and
    started again, and any number of them can be started on any hosts. Where tokens are pixels (`logging.image_shape`),
    each part is first drawn as `part-NNNNN.png`.

    Args:
        checkpoint: the directory of a consolidated checkpoint; with `follow` that of all of a run.
        output: the directory of the results, which is created if it does not exist.
        requests: those of all workers, numbered from 0.
        options: how to sample.
        batch_size: sequences in a forward pass, at most; `auto` finds out what this device does best with.
        part_size: samples in a file.
        device: of the model; if None, a GPU if there is one.
        weights: `model` for those of the last step, `ema` for their moving average.
        skip_faults: let the result of a request that has a fault (see `Request`), or that the model cannot take, be an
            `error`; False refuses all requests instead, after all have been looked at by the first worker; None refuses
            only if none of the first part can be used.
        progress: whether a progress bar is shown, where the output is a terminal.
        format: of the parts, `jsonl` or `shards`.
        follow: take up newer checkpoints of the run as they are published; each result then names its `checkpoint`.
        lease_seconds: without a sign of this worker, after which others take over what it holds.
        stop: is true once the worker is to commit what it has made, and to end.

    Returns:
        the paths of all parts, whoever has made them.

    Raises:
        UserError: an argument is out of range, there is no such device, a request cannot be generated, the output
            cannot be written, or it holds results of another checkpoint, of other requests or of other options.
        Stopped: the worker was asked to stop before all parts were there.
    """
    source = RequestList(requests) if isinstance(requests, Sequence) else requests
    if part_size < 1 or source.count < 1:
        raise UserError("the part size and the number of requests must be at least 1")
    output, found = Path(output), find_device(device)
    models = (FollowedModel if follow else FixedModel)(Path(checkpoint), weights, found)
    layout = Layout(source.count, part_size, format)
    record = {
        **models.record(),
        "weights": weights,
        "bad_prompts": "refuse" if skip_faults is False else "skip",
        **_record(source, layout, options, check_options(options, models.described)),
    }
    sizes = choose_batch_size(batch_size, found)
    units = Units(SharedDirectory(output), layout, Holder.of_this_process(), lease_seconds)
    if (output / RECORD_FILE).exists():  # a worker that was as strict has looked at the requests
        claim_output(output, record)
        units.look()
    else:
        _check_faults(source, models.described, options, part_size, skip_faults)
    if not units.complete:
        models.current()
        claim_output(output, record)
        maker = _SampleMaker(source, models, options, sizes, output, layout)
        with _Progress(units, progress) as shown:
            Worker(units, maker, stop, on_results=shown.add).run()
    return [output / layout.part_name(unit) for unit in range(layout.units)]


def read_results(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The results in finished parts, in order; each has a `number`, and `tokens` or an `error`.

    Raises:
        DataError: a part cannot be read, or is damaged.
    """
    return [json.loads(line) for path in paths for line in read_part(path)]


class _SampleMaker:
    """Makes the samples of a unit; see `nar_scale.fleet.work.Maker`."""

    def __init__(
        self,
        source: RequestSource,
        models: Models,
        options: SamplingOptions,
        sizes: BatchSize,
        output: Path,
        layout: Layout,
    ) -> None:
        self._source, self._models, self._options, self._sizes = source, models, options, sizes
        self._output, self._layout = output, layout

    def make(self, numbers: list[int]) -> Iterator[dict[int, bytes]]:
        model, wanted = self._models.current(), set(numbers)
        named = {} if self._models.name is None else {"checkpoint": self._models.name}
        requests = [one for one in self._source.read(numbers[0], numbers[-1] + 1) if one.number in wanted]
        checked = check_requests(requests, model, self._options.length or model.wrapper.max_seq_len)
        faulty = [request for request in checked if request.fault is not None]
        if faulty:
            _logger.warning("%d of %d prompts cannot be used; their results say why", len(faulty), len(checked))
            yield {request.number: _as_json(request.as_dict()) for request in faulty}
        sound = [request for request in checked if request.fault is None]
        for samples in generate_batches(model, sound, self._options, self._sizes):
            yield {sample.request.number: _as_json({**sample.as_dict(), **named}) for sample in samples}

    def before_commit(self, unit: int, results: list[bytes]) -> None:
        """Draw those samples that are whole images, if the model makes images."""
        model = self._models.described
        shape = model.config.logging.image_shape
        if shape is None:
            return
        tokens = [json.loads(result).get("tokens", ()) for result in results]
        whole = [each for each in tokens if len(each) == shape[0] * shape[1]]
        if whole:
            path = (self._output / self._layout.part_name(unit)).with_suffix(".png")
            write_atomically(path, encode_png(image_grid(np.array(whole), shape, model.info.vocabulary_size)))


class _Progress:
    """A bar where there is a terminal; elsewhere a line every now and then."""

    def __init__(self, units: Units, shown: bool) -> None:
        self._units, self._shown = units, shown
        self._made, self._begun = 0, time.monotonic()
        self._told = self._begun

    def __enter__(self) -> _Progress:
        self._bar = progress_bar("generate", self._units.layout.units, "part", enabled=self._shown)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.n = self._units.done
        self._bar.close()

    def add(self, count: int) -> None:
        """Note results of this worker."""
        self._made += count
        now = time.monotonic()
        rate = self._made / max(now - self._begun, 1e-9)
        self._bar.n = self._units.done
        self._bar.set_postfix_str(f"{self._made} results by this worker")
        if self._bar.disable and self._shown and now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            _logger.info(
                "%d of %d units done by all workers; %d results by this one, %.3g/s",
                self._units.done,
                self._units.layout.units,
                self._made,
                rate,
            )


def _record(source: RequestSource, layout: Layout, options: SamplingOptions, decoding: SamplerConfig) -> dict[str, Any]:
    return {
        "requests": source.digest,
        "count": source.count,
        "part_size": layout.part_size,
        "format": layout.format,
        "decoding": decoding.model_dump(mode="json"),
        "sampling": {"length": options.length, "seed": options.seed},
    }


def _as_json(result: dict[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False).encode()


def _check_faults(
    source: RequestSource, model: LoadedModel, options: SamplingOptions, part_size: int, skip_faults: bool | None
) -> None:
    """Refuse requests, if any fault, or faults alone, are a reason for that.

    Raises:
        UserError: the first faults are named.
    """
    if skip_faults:
        return
    length, faulty = options.length or model.wrapper.max_seq_len, []
    last = source.count if skip_faults is False else min(part_size, source.count)
    for start in range(0, last, _CHECKED_AT_ONCE):
        checked = check_requests(source.read(start, min(start + _CHECKED_AT_ONCE, last)), model, length)
        faulty += [request for request in checked if request.fault is not None]
    if skip_faults is False or len(faulty) == last:
        refuse_faults(faulty)
