"""Real workers: processes that are killed, asked to stop, or cannot make a unit."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nar_scale.errors import UserError
from nar_scale.fleet import Layout, Stopped
from tests.errors import refused
from tests.fleet.helpers import Breaking, Maker, result, units, worker

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from nar_scale.fleet import Holder, Layout, SharedDirectory, Stopped, StopSignals, Units, Worker
from tests.fleet.helpers import Maker
assert "torch" not in sys.modules
units = Units(SharedDirectory(Path(sys.argv[1])), Layout(120, 8), Holder.of_this_process({}), lease_seconds=2)
with StopSignals() as stop:
    print("ready", flush=True)
    try:
        Worker(units, Maker(seconds=float(sys.argv[2])), lambda: bool(stop)).run()
    except Stopped:
        sys.exit(85)
"""
LAYOUT = Layout(120, 8)


def start(directory, seconds=0.02):
    command = [sys.executable, "-c", PROGRAM, str(directory), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout.readline() == b"ready\n"
    return process


def content(directory, layout=LAYOUT):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def expected(layout):
    return {
        layout.part_name(unit): b"".join(result(number) + b"\n" for number in layout.numbers(unit))
        for unit in range(layout.units)
    }


def test_processes_that_are_killed_again_and_again(tmp_path):
    draw, workers = random.Random(0), [start(tmp_path) for _ in range(3)]
    for _ in range(6):
        time.sleep(draw.uniform(0.0, 0.1))
        which = draw.randrange(3)
        if workers[which].poll() is None:
            workers[which].kill()
            workers[which].wait()
            workers[which] = start(tmp_path)
    assert [process.wait() for process in workers] == [0, 0, 0]
    assert content(tmp_path) == expected(LAYOUT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_worker_that_is_asked_to_stop_gives_back_its_unit_and_its_results(tmp_path, number):
    process = start(tmp_path, seconds=0.3)
    while not list(tmp_path.glob(".unit-*.results")):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == 85
    journals = list(tmp_path.glob(".unit-*.results"))
    (free,) = tmp_path.glob(".unit-*.free")
    unit = int(free.name.split("-")[1].split(".")[0])
    made = sum(len(journal.read_bytes().splitlines()) for journal in journals)
    assert made >= 2
    maker = Maker()
    worker(tmp_path, LAYOUT, maker).run()
    assert len(set(maker.made) & set(LAYOUT.numbers(unit))) == len(LAYOUT.numbers(unit)) - made
    assert content(tmp_path) == expected(LAYOUT)


def test_a_stop_file_asks_as_well(tmp_path, monkeypatch):
    monkeypatch.setenv("NAR_SCALE_STOP_FILE", str(tmp_path / "stop"))
    process = start(tmp_path, seconds=0.3)
    (tmp_path / "stop").touch()
    assert process.wait() == 85


def test_a_unit_that_cannot_be_made_is_left_to_others(tmp_path):
    layout = Layout(12, 4)
    with refused(UserError, "units 1", "unit 1", "the device is gone"):
        worker(tmp_path, layout, Breaking([6])).run()
    assert {path.name for path in tmp_path.glob("part-*")} == {"part-00000.jsonl", "part-00002.jsonl"}
    maker = Maker()
    worker(tmp_path, layout, maker).run()
    assert maker.made == [6, 7]
    assert content(tmp_path) == expected(layout)


def test_a_stalled_worker_does_no_harm(tmp_path):
    layout, now = Layout(4, 4), [0.0]
    stalled = units(tmp_path, layout, "stalled", lease_seconds=60.0, clock=lambda: now[0])
    claim = stalled.claim()
    other = units(tmp_path, layout, "other", lease_seconds=60.0, clock=lambda: now[0] + 7e5)
    assert other.claim() is None
    for _ in range(13):
        assert other.take_over() is None
        now[0] += 4.9
    assert stalled.beat(claim)
    for _ in range(12):
        assert other.take_over() is None
        now[0] += 5.0
    taken = other.take_over()
    assert (taken.unit, taken.number) == (0, 2)
    assert not stalled.beat(claim)
    assert stalled.claim() is None


def test_time_in_which_nobody_looks_takes_no_lease(tmp_path):
    """A file system that stalls for everybody lets no lease run out."""
    layout, now = Layout(4, 4), [0.0]
    units(tmp_path, layout, "busy").claim()
    other = units(tmp_path, layout, "other", lease_seconds=60.0, clock=lambda: now[0])
    other.claim()
    other.take_over()
    now[0] += 10_000.0
    assert other.take_over() is None


def test_a_dead_process_of_this_machine_is_taken_over_from_at_once(tmp_path):
    process = start(tmp_path, seconds=60)
    while not any(claim.stat().st_size for claim in tmp_path.glob(".unit-*")):  # says whose it is
        time.sleep(0.02)
    process.kill()
    process.wait()
    fresh = units(tmp_path, LAYOUT, lease_seconds=1e6)
    claims = [fresh.claim() for _ in range(LAYOUT.units - 1)]
    assert len({claim.unit for claim in claims}) == LAYOUT.units - 1
    assert fresh.claim() is None
    assert fresh.take_over().number == 2


def test_what_was_cut_off_is_made_again(tmp_path):
    layout, maker = Layout(4, 4), Maker()
    first = units(tmp_path, layout)
    claim = first.claim()
    from nar_scale.fleet.journal import Journal

    Journal(first.directory, claim).append({number: result(number) for number in range(3)})
    first.give_back(claim)
    journal = tmp_path / ".unit-00000.1.results"
    journal.write_bytes(journal.read_bytes()[:-5])
    worker(tmp_path, layout, maker).run()
    assert maker.made == [2, 3]
    assert content(tmp_path) == expected(layout)


def test_of_two_that_finish_a_unit_the_first_one_counts(tmp_path):
    layout = Layout(2, 2)

    class Overtaken(Maker):
        def before_commit(self, unit, results):
            (tmp_path / layout.part_name(0)).write_bytes(b"by another worker\n")

    worker(tmp_path, layout, Overtaken()).run()
    assert content(tmp_path) == {layout.part_name(0): b"by another worker\n"}


def test_a_request_to_stop_before_anything_was_claimed(tmp_path):
    with pytest.raises(Stopped):
        worker(tmp_path, LAYOUT, stop=lambda: True).run()
    assert os.listdir(tmp_path) == []
