"""What a trace of torch's profiler says ran, for how long, and which operation of which part of a step asked for it."""

from __future__ import annotations

import bisect
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.speed.step_trace import MARK

_OPERATIONS = ("cpu_op", "user_annotation")
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")

Event = dict[str, Any]
_Moment = tuple[float, int]
"""When, in microseconds, and in which thread."""


@dataclass(frozen=True)
class Work:
    """Something that ran: a kernel or a copy on a GPU; where there is no GPU an operation, without those within it.

    Attributes:
        name: of the kernel or the operation.
        start: in microseconds.
        duration: in microseconds.
        part: of the step, in which it was asked for (`StepTrace`).
        operations: the operations that it was asked for in, outermost first.
        shapes: of the inputs of the innermost.
    """

    name: str
    start: float
    duration: float
    part: str
    operations: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]


def read_trace(path: Path) -> tuple[list[Work], float]:
    """What ran in a trace that `StepTrace` has written, and from when to when, in microseconds.

    The time is that from the first mark to the end of the last work.
    """
    events = json.loads(path.read_bytes())["traceEvents"]
    return read_events([event for event in events if event.get("ph") == "X"])


def read_events(events: Sequence[Event]) -> tuple[list[Work], float]:
    """The same of the complete events of a trace in memory."""
    operations = [event for event in events if event.get("cat") in _OPERATIONS]
    marks = sorted((event["ts"], event["name"].removeprefix(MARK)) for event in operations if _is_mark(event))
    operations = [event for event in operations if not _is_mark(event)]
    kernels = [event for event in events if event.get("cat") in _ON_DEVICE]
    work = _of_kernels(kernels, events, operations) if kernels else _of_operations(operations)
    start = marks[0][0]
    found = [
        Work(name, begin, duration, _part(marks, asked), tuple(each["name"] for each in within), _shapes(within))
        for name, begin, duration, asked, within in work
        if asked >= start
    ]
    return found, max(each.start + each.duration for each in found) - start


def busy_time(work: Sequence[Work]) -> float:
    """Microseconds in which at least one of them ran."""
    total, end = 0.0, float("-inf")
    for each in sorted(work, key=lambda one: one.start):
        total += max(0.0, each.start + each.duration - max(end, each.start))
        end = max(end, each.start + each.duration)
    return total


_Found = tuple[str, float, float, float, list[Event]]
"""Name, start, duration, when it was asked for, and the operations that did."""


def _of_kernels(kernels: Sequence[Event], events: Sequence[Event], operations: Sequence[Event]) -> list[_Found]:
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    # a kernel whose launch is not in the trace counts by the time at which it ran
    asked = [launches.get(kernel.get("args", {}).get("correlation"), kernel) for kernel in kernels]
    within = _operations_at(operations, [(launch["ts"], launch["tid"]) for launch in asked])
    return [
        (kernel["name"], kernel["ts"], kernel["dur"], launch["ts"], stack)
        for kernel, launch, stack in zip(kernels, asked, within)
    ]


def _of_operations(operations: Sequence[Event]) -> list[_Found]:
    within = _operations_at(operations, [(event["ts"], event["tid"]) for event in operations])
    inner: dict[int, float] = defaultdict(float)
    for event, stack in zip(operations, within):
        outer = [each for each in stack if each is not event]
        if outer:
            inner[id(outer[-1])] += event["dur"]
    return [
        (event["name"], event["ts"], max(event["dur"] - inner[id(event)], 0.0), event["ts"], stack)
        for event, stack in zip(operations, within)
    ]


def _operations_at(operations: Sequence[Event], moments: Sequence[_Moment]) -> list[list[Event]]:
    """The operations that are under way at each moment in its thread, outermost first."""
    by_thread: dict[int, list[Event]] = defaultdict(list)
    for operation in sorted(operations, key=lambda each: (each["ts"], -each["dur"])):
        by_thread[operation["tid"]].append(operation)
    found: list[list[Event]] = [[] for _ in moments]
    position: dict[int, int] = defaultdict(int)
    under_way: dict[int, list[Event]] = defaultdict(list)
    for number in sorted(range(len(moments)), key=lambda each: moments[each][0]):
        time, thread = moments[number]
        begun, stack = by_thread[thread], under_way[thread]
        while position[thread] < len(begun) and begun[position[thread]]["ts"] <= time:
            operation = begun[position[thread]]
            _end_before(stack, operation["ts"])
            stack.append(operation)
            position[thread] += 1
        _end_before(stack, time)
        found[number] = list(stack)
    return found


def _end_before(stack: list[Event], time: float) -> None:
    while stack and stack[-1]["ts"] + stack[-1]["dur"] < time:
        stack.pop()


def _is_mark(event: Event) -> bool:
    return str(event["name"]).startswith(MARK)


def _part(marks: Sequence[tuple[float, str]], time: float) -> str:
    return marks[bisect.bisect_right(marks, (time, "\uffff")) - 1][1]


def _shapes(operations: Sequence[Event]) -> tuple[tuple[int, ...], ...]:
    if not operations:
        return ()
    shapes = operations[-1].get("args", {}).get("Input Dims", [])
    return tuple(tuple(shape) for shape in shapes if all(isinstance(size, int) for size in shape))
