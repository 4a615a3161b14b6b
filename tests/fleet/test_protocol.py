"""The protocol under all kinds of interleavings: workers that stall, are killed, or meet a full disk between any two
operations on files, with a clock that the test owns."""

import errno
import json
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nar_scale.errors import UserError
from nar_scale.fleet import Holder, Layout, SharedDirectory, Stopped, Units, Worker
from nar_scale.fleet.names import FAILED, FREE, claim_name

LEASE = 60.0
LAYOUT = Layout(count=15, part_size=4)
HERE = Holder.of_this_process({})
MOST_OPERATIONS = 5000
TURNS = st.fixed_dictionaries(
    {
        "which": st.integers(0, 3),  # of the workers that are alive
        "operations": st.integers(1, 12),
        "seconds": st.sampled_from([0.0, 0.0, 2.0, 10.0, 45.0]),  # that pass before
        "beating": st.sampled_from([0b0000, 0b1111, 0b1110, 0b0001]),  # who sends a heartbeat then
        "event": st.sampled_from([None] * 16 + ["kill", "stop", "disk_full", "fail", "start"]),
        "torn": st.floats(0, 1),  # how much of a write is done before a kill or on a full disk
    }
)


class Killed(BaseException):
    """The process is gone: nothing that it would have done happens."""


class SteppedDirectory(SharedDirectory):
    """Waits before each operation of the worker's thread until the test lets it go on."""

    def __init__(self, path, worker):
        super().__init__(path)
        self.worker = worker

    def list(self):
        self.worker.pause()
        return super().list()

    def create(self, name):
        self.worker.pause()
        return super().create(name)

    def append(self, name, content, durable=False):
        torn = self.worker.pause(content)
        if torn is not None:
            super().append(name, torn)
            self.worker.die()
        super().append(name, content)
        self.worker.model.appended(name)

    def size(self, name):
        self.worker.pause()
        return super().size(name)

    def read(self, name):
        self.worker.pause()
        return super().read(name)

    def publish(self, name, as_name):
        self.worker.pause()
        super().publish(name, as_name)

    def remove(self, name):
        self.worker.pause()
        super().remove(name)


class SteppedWorker:
    """A real worker in a thread, which goes on by one operation at a time."""

    def __init__(self, model, name):
        self.model, self.name = model, name
        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.killed = self.stopping = self.breaking = self.disk_full = self.ended = self.lost = False
        self.had_no_room = False
        self.torn = 1.0  # the fraction of a write that happens before the process is killed
        self.claim = self.error = None
        self.made = []
        # each host counts its seconds from another point
        clock_offset = 1000.0 * len(model.started)
        self.units = Units(
            SteppedDirectory(model.path, self),
            LAYOUT,
            replace(HERE, host=name, machine=name, token=name),
            LEASE,
            lambda: model.now + clock_offset,
        )
        worker = Worker(self.units, self, lambda: self.stopping, self.sleep, lambda _, claim: self.hold(claim))
        self.thread = threading.Thread(target=self.run, args=(worker,), daemon=True)
        self.thread.start()
        self.paused.acquire()

    def run(self, worker):
        try:
            worker.run()
        except (Killed, Stopped):
            pass
        except UserError as error:
            self.error = error
            if not self.had_no_room and not self.units.failed:
                self.model.surprises.append(error)
        except BaseException as error:
            self.model.surprises.append(error)
        self.claim, self.ended = None, True
        self.paused.release()

    def pause(self, content=None):
        """Wait; of a write, what is to be written of it before the process is gone, None for all."""
        if threading.current_thread() is not self.thread:
            return None
        if not self.killed:
            self.paused.release()
            self.go.acquire()
        if content is not None and (self.killed or self.disk_full):
            return content[: int(self.torn * len(content))]
        if self.killed:
            raise Killed
        return None

    def die(self):
        if self.killed:
            raise Killed
        self.disk_full, self.had_no_room = False, True
        raise OSError(errno.ENOSPC, "No space left on device")

    def step(self):
        if not self.ended:
            self.go.release()
            self.paused.acquire()

    def kill(self, torn):
        self.killed, self.torn = True, torn
        self.step()
        self.thread.join()

    def sleep(self, seconds):
        assert seconds <= LEASE / 12
        self.pause()

    # what the worker asks of its maker

    def make(self, numbers):
        for start in range(0, len(numbers), 2):
            self.pause()
            if self.breaking:
                self.breaking = False
                raise RuntimeError("out of memory\nin two lines")
            batch = numbers[start : start + 2]
            self.made += batch
            yield {number: json.dumps({"number": number, "by": self.name}).encode() for number in batch}

    def before_commit(self, unit, results):
        self.pause()

    # its lease

    def hold(self, claim):
        try:
            self.model.check_claim(self, claim)
        except AssertionError as error:  # which the worker would take for a unit that cannot be made
            self.model.surprises.append(error)
        self.claim, self.lost = claim, False
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.claim = None

    def beat(self):
        if self.claim is not None and not self.ended and not self.units.beat(self.claim):
            self.lost = True


class Fleet(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.now = 0.0
        self.started, self.surprises = [], []
        self.beats, self.claims, self.parts = {}, {}, {}

    # what must be true

    def appended(self, name):
        self.beats[name] = self.now

    def check_claim(self, worker, claim):
        """Nobody else has had this claim, and whoever had the one before has ended or has been silent for its lease."""
        assert claim not in self.claims, f"{claim} is held twice"
        self.claims[claim] = worker
        before = next((held for held in self.claims if held == replace(claim, number=claim.number - 1)), None)
        if before is None:
            return
        given_back = any((self.path / before.name(suffix)).exists() for suffix in (FREE, FAILED))
        silent = self.now - self.beats[claim_name(before.unit, before.number)]
        assert given_back or silent >= LEASE, f"{before} was taken over after {silent} s"

    @invariant()
    def parts_are_whole_and_never_change(self):
        assert self.surprises == []
        for unit in range(LAYOUT.units):
            path = self.path / LAYOUT.part_name(unit)
            if path.exists() or unit in self.parts:
                content = path.read_bytes()
                assert self.parts.setdefault(unit, content) == content
                numbers = [json.loads(line)["number"] for line in content.splitlines()]
                assert numbers == list(LAYOUT.numbers(unit))

    # what may happen

    @property
    def alive(self):
        return [worker for worker in self.started if not worker.ended]

    @initialize()
    def start_three(self):
        for _ in range(3):
            self.start_worker()

    def start_worker(self):
        self.started.append(SteppedWorker(self, f"w{len(self.started)}"))
        return self.started[-1]

    @rule(turns=st.lists(TURNS, min_size=5, max_size=30))
    def go_on(self, turns):
        for turn in turns:
            if len(self.parts) < LAYOUT.units:
                self.take(**turn)

    def take(self, which, operations, seconds, beating, event, torn):
        self.now += seconds
        for place, worker in enumerate(self.alive):
            if beating >> place & 1:
                worker.beat()
        if len(self.alive) < 2 or (event == "start" and len(self.alive) < 4):
            self.start_worker()
        worker = self.alive[which % len(self.alive)]
        worker.torn = torn
        if event == "kill":
            worker.kill(torn)
        worker.stopping |= event == "stop"
        worker.disk_full |= event == "disk_full"
        worker.breaking |= event == "fail"
        for _ in range(operations):
            worker.step()
            self.parts_are_whole_and_never_change()

    # however it went, a new worker finishes the work, and those that had stalled do no harm when they go on

    def teardown(self):
        try:
            stalled, finisher = self.alive, self.start_worker()
            for worker in [finisher, *stalled]:
                for _ in range(MOST_OPERATIONS):
                    if worker.ended:
                        break
                    self.now += LEASE / 12
                    finisher.beat()
                    worker.step()
                    self.parts_are_whole_and_never_change()
                assert worker.ended, "it never ends"
            assert finisher.error is None
            assert sorted(self.parts) == list(range(LAYOUT.units))
            finisher.units.look()
            assert sorted(path.name for path in self.path.iterdir()) == [
                LAYOUT.part_name(unit) for unit in range(LAYOUT.units)
            ]
        finally:
            for worker in self.alive:
                worker.kill(0.0)
            shutil.rmtree(self.path)


Fleet.TestCase.settings = settings(max_examples=80, stateful_step_count=12, deadline=None, derandomize=True)
TestFleet = Fleet.TestCase
