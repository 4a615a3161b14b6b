"""How large batches become, from what those before have taken."""

import pytest
import torch

from nar_scale.checkpoint import load_consolidated
from nar_scale.errors import UserError
from nar_scale.generation import SamplingOptions, generate, generate_samples, samples_from_scratch
from nar_scale.generation.batch_size import FixedBatchSize, MeasuredBatchSize, MemoryBatchSize, choose_batch_size
from nar_scale.generation.sampling import generate_batches
from tests.errors import refused
from tests.generation.helpers import export


def sizes_on(seconds, start=4, batches=12):
    """The sizes of full batches on a device that takes so many seconds for a batch."""
    sizes, used = MeasuredBatchSize(start), []
    for _ in range(batches):
        used.append(sizes.next)
        sizes.record(sizes.next, 10.0 * sizes.next, seconds(sizes.next))
    return used


def test_the_size_doubles_as_long_as_that_is_faster():
    assert sizes_on(lambda n: 1 + n / 16)[-1] > 64
    assert sizes_on(lambda n: n)[:4] == [4, 8, 4, 4]
    # up to 16 sequences at once cost nothing
    assert sizes_on(lambda n: max(1, n / 16))[-1] == 16
    partial = MeasuredBatchSize()
    partial.record(3, 1.0, 1.0)
    assert partial.next == 4


def test_the_size_is_what_fits_into_memory():
    used = [0]
    sizes = MemoryBatchSize(lambda: used[0], at_rest=1000, available=2000)
    history = []
    for _ in range(6):
        history.append(sizes.next)
        used[0] = 1000 + 10 * sizes.next
        sizes.record(sizes.next, 1.0, 1.0)
    assert history == [4, 16, 64, 70, 70, 70]  # 85 % of 2000, less 1000, of 10 each
    used[0] = 1000 + 35 * 70
    assert sizes.shrink()
    assert sizes.next == 35
    used[0] = 1000 + 10 * 35
    sizes.record(35, 1.0, 1.0)
    assert sizes.next == 35
    while sizes.next > 1:
        assert sizes.shrink()
    assert not sizes.shrink()


def test_a_batch_that_memory_has_no_room_for_is_made_in_smaller_ones(tmp_path, monkeypatch):
    model = load_consolidated(export(tmp_path / "model", "autoregressive"))
    options, requests = SamplingOptions(seed=1), samples_from_scratch(11)
    expected = list(generate_samples(model, requests, options, 11))
    sample = model.wrapper.sample
    asked = []

    def in_little_memory(given, *arguments, **others):
        asked.append(len(given))
        if len(given) > 3:
            raise torch.OutOfMemoryError("no room")
        return sample(given, *arguments, **others)

    monkeypatch.setattr(model.wrapper, "sample", in_little_memory)
    batches = list(generate_batches(model, requests, options, MeasuredBatchSize(8)))
    assert asked[:3] == [8, 4, 2]
    assert sorted((one for batch in batches for one in batch), key=lambda one: one.request.number) == expected
    with pytest.raises(torch.OutOfMemoryError):
        list(generate_batches(model, requests, options, FixedBatchSize(8)))


def test_auto_gives_the_same_results(tmp_path):
    checkpoint = export(tmp_path / "model", "non_autoregressive")
    parts = {}
    for size in ("auto", 3):
        output = tmp_path / str(size)
        paths = generate(checkpoint, output, samples_from_scratch(20), SamplingOptions(), batch_size=size, device="cpu")
        parts[size] = [path.read_bytes() for path in paths]
    assert parts["auto"] == parts[3]
    assert isinstance(choose_batch_size("auto", torch.device("cpu")), MeasuredBatchSize)
    with refused(UserError, "batch size", 1):
        choose_batch_size(0, torch.device("cpu"))
