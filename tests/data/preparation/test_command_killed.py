"""launcher/prepare.py, killed by SIGKILL again and again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nar_scale.data import DatasetInfo, prepare
from tests.data.corpora import check_whole, count_documents, read_split
from tests.data.preparation.preparing import check_equal

ROOT = Path(__file__).parents[3]


LAUNCHER = ROOT / "launcher" / "prepare.py"


FLAGS = ("--seq-len", "64", "--validation", "0.3", "--samples-per-shard", "16", "--unit-bytes", "2000")


# The launcher, loaded once; each line of arguments is then run in a process group of its own.
LAUNCHERS = """\
import json, os, sys
import nar_scale.data
from nar_scale.commands import prepare as launcher
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = launcher.main(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    os.setpgid(process, process)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


# Killed for good


class Launchers:
    """Runs of launcher/prepare.py, each in a process group of its own, started at once."""

    def __init__(self, directory):
        self.log = directory / "log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOG": str(self.log)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, *arguments):
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self):
        return int(self._process.stdout.readline())

    def stop(self):
        self._process.stdin.close()
        self._process.wait(timeout=600)


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    launchers = Launchers(tmp_path_factory.mktemp("launchers"))
    yield launchers
    launchers.stop()


def progress_of(output):
    """How many units are done, and shards in place."""
    return sum(1 for pattern in (".prepare-*/unit-*", "*/shard-*.tar") for _ in output.glob(pattern))


def kill_after(process, output, steps, seconds):
    """Kill a process group some time after it has done so many steps more, if it lives that long."""
    target = progress_of(output) + steps
    with suppress(ProcessLookupError):
        while progress_of(output) < target:
            os.kill(process, 0)
            time.sleep(0.001)
        time.sleep(seconds)
        os.killpg(process, signal.SIGKILL)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_again_and_again_no_document_is_lost_or_doubled(shared_corpus, unbroken, launchers, tmp_path, overwrite):
    chance = random.Random(int(overwrite))
    for attempt in range(5):  # it may be done before it is killed three times, on a machine that stalls
        output = tmp_path / f"data{attempt}"
        arguments = ["--input", shared_corpus, "--output", output, *FLAGS, "--workers", "2"]
        if overwrite:
            prepare([shared_corpus], output, seq_len=64, validation=0.3, workers=1, progress=False)
            arguments.append("--overwrite")
        kills = kill_again_and_again(launchers, output, arguments, chance)
        launchers.start(*arguments)
        status = launchers.wait()
        assert status == 0, launchers.log.read_text()
        check_equal(output, unbroken)
        assert count_documents(output) == count_documents(unbroken)
        if kills > 2:
            break
    assert kills > 2  # 6 unless this machine is much too slow


def kill_again_and_again(launchers, output, arguments, chance):
    """How often the same command was killed, of up to 6 times, before it was done."""
    for kills in range(6):
        process = launchers.start(*arguments)
        kill_after(process, output, chance.randrange(4), chance.uniform(0, 0.02))
        status = launchers.wait()
        check_whole(output)
        if status == 0:
            return kills
        assert status in (-signal.SIGKILL, 2), launchers.log.read_text()
    return 6


def test_the_command_itself_goes_on_where_it_was_killed(shared_corpus, unbroken, launchers, tmp_path):
    for attempt in range(5):  # it may be done before it is killed, on a machine that stalls
        output = tmp_path / f"data{attempt}"
        arguments = ["--input", shared_corpus, "--output", output, *FLAGS, "--workers", "2"]
        kill_after(launchers.start(*arguments), output, 3, 0)
        if launchers.wait() == -signal.SIGKILL:
            break
    assert not (output / "dataset.json").exists()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, LAUNCHER, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check_equal(output, unbroken)
    assert len(read_split(output, "train")) == DatasetInfo.load(output).splits["train"].samples
