"""Damaged and hostile bytes for tests, and the bounds within which they must be read or refused.

`FUZZ_ROUNDS=20 pytest tests/data -k fuzz` draws that many times as many examples, other ones each time.
"""

import multiprocessing
import os
import re
import resource
import signal
import traceback
import tracemalloc
import warnings
from contextlib import contextmanager

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.data.loading.collate import BatchReader
from nar_scale.data.shards.sample_format import SampleFormat
from nar_scale.errors import UserError

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "1"))


CPU_SECONDS = 10.0


KIB, MIB = 1 << 10, 1 << 20


LONGEST_MESSAGE = 2000


def fuzz(examples):
    return settings(
        max_examples=examples * ROUNDS,
        deadline=None,
        derandomize=ROUNDS == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    pass


def hung(*_):
    raise Hang


@contextmanager
def cpu_limit(seconds=CPU_SECONDS):
    """A limit on processor time, so that a busy machine does not matter; pytest-timeout keeps its own alarm."""
    previous = signal.signal(signal.SIGPROF, hung)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


@contextmanager
def bounded(input_bytes, factor=32, constant=4 * MIB):
    """Limits on processor time and on what Python and numpy allocate."""
    tracemalloc.start()
    try:
        with cpu_limit():
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < factor * input_bytes + constant, f"{peak} bytes for an input of {input_bytes}"


def check_message(error):
    text = str(error)
    assert text.isprintable(), text
    assert 0 < len(text) < LONGEST_MESSAGE, text[:LONGEST_MESSAGE]


def in_child(work, *arguments, memory=None):
    """Run a function in a process of its own, which may be killed: returns what it says, or its exit code."""

    def run(pipe):
        if memory is not None:
            with open("/proc/self/statm") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
        try:
            pipe.send(work(*arguments))
        except BaseException:
            pipe.send(traceback.format_exc())

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=run, args=(sender,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads of libraries that the child does not use
        child.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    child.join()
    return result if child.exitcode == 0 else f"exit code {child.exitcode}"


place = st.integers(0, 1 << 16)


def at(content, number):
    return number % (len(content) + 1)


def flip(content, where, mask):
    return (
        content[: at(content, where)]
        + bytes(b ^ mask for b in content[at(content, where) :][:1])
        + (content[at(content, where) + 1 :])
    )


def insert(content, where, new):
    return content[: at(content, where)] + new + content[at(content, where) :]


def mutation(function, *arguments):
    return st.tuples(*arguments).map(lambda drawn: lambda content: function(content, *drawn))


def mutations(*functions):
    def apply(content, changes):
        for change in changes:
            content = change(content)
        return content

    return lambda seeds: st.builds(apply, seeds, st.lists(st.one_of(*functions), min_size=1, max_size=4))


any_mutation = [
    mutation(flip, place, st.integers(1, 255)),
    mutation(lambda content, where: content[: at(content, where)], place),
    mutation(insert, place, st.binary(max_size=600)),
]


FORMAT = SampleFormat(8, 100, class_field="cls", num_classes=10, document_field="documents.npy")


def read_all(index, sample_format=FORMAT, skip_faults=False, batch=4, most=300):
    reader = BatchReader(index, sample_format, skip_faults)
    rows = []
    for start in range(0, min(index.num_samples, most), batch):
        ids = np.arange(start, min(start + batch, index.num_samples))
        arrays = reader.read(ids, np.zeros_like(ids), ids)
        for message in arrays.faults:
            check_message(message)
        rows += [arrays.tokens.tolist(), arrays.lengths.tolist(), arrays.classes.tolist(), arrays.faults]
    return rows


def documents_or_refusal(file, piece_bytes):
    """The documents of an input file, or the message of the error."""
    try:
        documents = [d for piece in split_into_pieces(file, piece_bytes) for d in read_piece(piece)]
        return [
            (d.text, None if d.tokens is None else d.tokens.tolist(), d.label) if hasattr(d, "text") else d.reason
            for d in documents
        ]
    except UserError as error:
        check_message(error)
        return re.sub("0x[0-9a-f]+", "0x", str(error))  # numpy names nodes by their address
