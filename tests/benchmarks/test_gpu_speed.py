"""What the stages of speed make of traces, FLOPs and memory, on numbers that can be checked by hand."""

import pytest
import torch

from benchmarks.gpu.speed import breakdown
from benchmarks.gpu.speed.attempts import Attempts
from benchmarks.gpu.speed.flops import TokenFlops
from benchmarks.gpu.speed.micro_batch import larger_one, largest_that_fits, smaller_one
from benchmarks.gpu.speed.step_trace import BACKWARD, DATA, FORWARD, HEAD, MARK, OPTIMIZER
from benchmarks.gpu.speed.trace_events import busy_time, read_events
from benchmarks.gpu.stage import Record
from nar_scale.model import Decoder, Encoder, TransformerWrapper
from nar_scale.planning.memory_estimate import GIBIBYTE

MAIN, AUTOGRAD = 1, 2  # threads
HIDDEN, VOCABULARY = 12, 20


class Trace:
    """Makes the events of a trace of a GPU, as torch's profiler writes them."""

    def __init__(self):
        self.events, self.kernels = [], 0

    def mark(self, part, start):
        self.operation(MARK + part, start, 0, category="user_annotation")

    def operation(self, name, start, duration, thread=MAIN, shapes=(), category="cpu_op"):
        self.add(category, name, start, duration, thread, {"Input Dims": [list(shape) for shape in shapes]})

    def kernel(self, name, launch, start, duration, thread=MAIN, category="kernel"):
        self.kernels += 1
        launched = {"correlation": self.kernels}
        self.add("cuda_runtime", "cudaLaunchKernel", launch, 1, thread, launched)
        self.add(category, name, start, duration, 7, launched)

    def add(self, category, name, start, duration, thread, arguments):
        event = {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": thread}
        self.events.append({**event, "args": arguments})


@pytest.fixture
def step():
    """A step in which each category has a kernel; launched ahead of when they run."""
    trace = Trace()
    trace.kernel("of the step before", 0, 1, 5)
    for part, start in ((DATA, 10), (FORWARD, 20), (HEAD, 40), (BACKWARD, 60), (OPTIMIZER, 80), (DATA, 90)):
        trace.mark(part, start)
    trace.kernel("Memcpy HtoD", 11, 12, 3, category="gpu_memcpy")
    trace.operation("aten::embedding", 20, 1)
    trace.kernel("gather", 20, 22, 2)
    trace.operation("Torch-Compiled Region: 0/0", 22, 10)
    trace.operation("aten::mm", 23, 1, shapes=((8, 4), (4, 4)))
    trace.kernel("gemm a", 23, 24, 7)
    trace.operation("aten::_scaled_dot_product_flash_attention", 25, 1)
    trace.kernel("flash_fwd_kernel", 25, 31, 5)
    trace.operation("triton_poi_fused__scaled_dot_product_flash_attention_mul_1", 27, 1)
    trace.kernel("triton_poi_fused__scaled_dot_product_flash_attention_mul_1", 27, 36, 4)
    trace.operation("aten::addmm", 29, 1, shapes=((4,), (8, HIDDEN), (HIDDEN, 4)))
    trace.kernel("gemm b", 29, 40, 10)
    trace.operation("aten::mm", 41, 1, shapes=((5, 4), (4, VOCABULARY)))
    trace.kernel("gemm c", 41, 50, 6)
    trace.operation("autograd::engine::evaluate_function: CompiledFunctionBackward", 61, 8, thread=AUTOGRAD)
    trace.operation("aten::mm", 62, 1, thread=AUTOGRAD, shapes=((4, 8), (8, 2 * HIDDEN)))
    trace.kernel("gemm d", 62, 63, 20, thread=AUTOGRAD)
    trace.operation("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 70, 5, thread=AUTOGRAD)
    trace.operation("aten::copy_", 71, 1, thread=AUTOGRAD)
    trace.kernel("copy", 71, 83, 3, thread=AUTOGRAD)
    trace.operation("aten::add_", 76, 1)
    trace.kernel("add", 76, 86, 1)
    trace.kernel("multi_tensor_apply", 81, 88, 12)
    trace.kernel("beside it", 82, 90, 4)
    return read_events(trace.events)


def test_kernels_are_sorted_by_what_launched_them(step):
    work, span = step
    assert span == 90  # from the first mark at 10 to the end of the last kernel
    assert "of the step before" not in {each.name for each in work}
    parts = breakdown.break_down(work, span, (HIDDEN, 2 * HIDDEN), VOCABULARY)
    assert {name: part.microseconds for name, part in parts.items()} == {
        breakdown.LOADING: 3,
        breakdown.EMBEDDING: 2,
        breakdown.PROJECTIONS: 7,
        breakdown.ATTENTION: 5,
        breakdown.ELEMENTWISE: 4,
        breakdown.FEEDFORWARD: 30,
        breakdown.HEAD_AND_LOSS: 6,
        breakdown.GRADIENTS: 4,
        breakdown.STEP: 16,
        breakdown.IDLE: 90 - 73,
    }
    assert busy_time(work) == 73  # 77 less the four that ran beside another
    assert parts[breakdown.FEEDFORWARD].flops == 2 * (8 * HIDDEN * 4 + 4 * 8 * 2 * HIDDEN)
    assert parts[breakdown.FEEDFORWARD].product_microseconds == 30
    assert parts[breakdown.HEAD_AND_LOSS].flops == 2 * 5 * 4 * VOCABULARY
    assert breakdown.longest_kernels(parts, 1) == ["feed-forward products: 0.02 ms gemm d"]


def test_a_kernel_without_a_launch_is_kept():
    trace = Trace()
    trace.mark(DATA, 0)
    trace.mark(OPTIMIZER, 10)
    trace.add("kernel", "late", 12, 2, 7, {})
    work, span = read_events(trace.events)
    assert [(each.name, each.part) for each in work] == [("late", OPTIMIZER)]
    assert span == 14


def test_operations_take_the_place_of_kernels_on_a_cpu():
    trace = Trace()
    trace.mark(FORWARD, 0)
    trace.operation("aten::linear", 1, 10)
    trace.operation("aten::mm", 3, 6, shapes=((2, 3), (3, 4)))
    trace.operation("aten::add", 12, 2)
    work, span = read_events(trace.events)
    assert {each.name: each.duration for each in work} == {"aten::linear": 4, "aten::mm": 6, "aten::add": 2}
    assert span == 14


@pytest.mark.parametrize(("kind", "seen"), [(Encoder, 1.0), (Decoder, 0.5)])
def test_flops_by_each_count(kind, seen):
    dim, depth, heads, hidden, n = 8, 3, 2, 12, 16
    stack = kind(dim, depth, heads, feedforward_dim=hidden)
    net = TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=n, attn_layers=stack)
    blocks, head, norms = depth * (4 * dim * dim + 3 * dim * hidden), dim * VOCABULARY, (2 * depth + 1) * dim
    attention = 12 * depth * dim * n
    flops = TokenFlops.of(net, predicted=0.25, head_passes=2)
    assert flops.ours == 6 * (blocks + head + norms) + attention
    assert flops.nanochat == 6 * (blocks + head) + attention
    assert flops.palm == 6 * (blocks + head + norms + head) + attention  # the table is as large as the head
    assert flops.computed == 6 * blocks + 0.25 * 8 * head + seen * attention
    assert TokenFlops.of(net, predicted=1.0, head_passes=1).computed == 6 * (blocks + head) + seen * attention


def test_the_largest_micro_batch_that_fits():
    needed = {1: 10 * GIBIBYTE, 2: 12 * GIBIBYTE, 4: 16 * GIBIBYTE, 8: 24 * GIBIBYTE}
    assert largest_that_fits(needed, 80 * GIBIBYTE) == 8
    assert largest_that_fits(needed, 20 * GIBIBYTE) == 4
    assert largest_that_fits(needed, 17 * GIBIBYTE) == 2  # 16 with 1 for the libraries leave no margin
    assert largest_that_fits(needed, GIBIBYTE) == 1
    assert [smaller_one(size) for size in (8, 2, 1)] == [6, 1, None]


def test_a_larger_micro_batch_by_what_was_measured():
    estimate = {size: (8 + 2 * size) * GIBIBYTE for size in (1, 2, 4, 8, 16, 32)}
    as_estimated, half = estimate[8], (8 + 8) * GIBIBYTE
    assert larger_one(8, estimate, as_estimated, 30 * GIBIBYTE) is None
    assert larger_one(8, estimate, half, 30 * GIBIBYTE) == 16
    assert larger_one(8, estimate, 7 * GIBIBYTE, 30 * GIBIBYTE) is None  # less than what does not grow: no telling


def attempts(tmp_path, seconds):
    return Attempts(Record(tmp_path / "file.json"), seconds, torch.device("cpu"), rehearsing=False)


def test_an_attempt_that_fails_does_not_stop_the_next(tmp_path):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    done = []
    three = attempts(tmp_path, 1000)
    assert not three.run("one", 1, fail)
    assert three.run("two", 1, lambda: done.append(2))
    assert three.failed
    assert done == [2]
    assert three.record.notes == ["one: OutOfMemoryError: CUDA out of memory. Tried to allocate"]


def test_what_has_no_time_left_is_noted_and_no_failure(tmp_path):
    late = attempts(tmp_path, 100)
    assert not late.run("one", 200, lambda: pytest.fail("it was run"))
    assert not late.failed
    assert ["one" in note and "200" in note for note in late.record.notes] == [True]
