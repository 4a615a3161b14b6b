import os
import signal
import subprocess
import sys
import time

import pytest

# starts a child that is to be killed with it, prints the child's id, and waits
PARENT = """
import os, signal, time
from nar_scale.processes import send_when_parent_ends
ready, done = os.pipe()
child = os.fork()
if child == 0:
    send_when_parent_ends(signal.SIGKILL)
    os.write(done, b"1")
    time.sleep(600)
os.read(ready, 1)
print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do this")
def test_a_process_does_not_outlive_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 300
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# runs a process that says when it has begun, and ends with 85 once it is asked to stop, or never
STOPPABLE = """
import sys
from nar_scale.processes import run_until_stopped
sys.exit(run_until_stopped([sys.executable, "-c", sys.argv[1]]))
"""
HEEDS = """
import os, pathlib, sys, time
print("begun", flush=True)
while not os.path.exists(os.environ["NAR_SCALE_STOP_FILE"]):
    time.sleep(0.05)
sys.exit(85)
"""
HEEDS_NOT = HEEDS.replace("sys.exit(85)", "print('asked', flush=True); time.sleep(600)")


def begun(script, environment):
    command = [sys.executable, "-c", STOPPABLE, script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_asks_by_the_stop_file(number, tmp_path):
    file = tmp_path / "stop"
    process = begun(HEEDS, {**os.environ, "NAR_SCALE_STOP_FILE": str(file)})
    process.send_signal(number)
    assert process.wait(timeout=60) == 85
    assert not file.exists()  # the next run is not asked to stop


def test_asked_a_second_time_it_kills():
    environment = {name: value for name, value in os.environ.items() if name != "NAR_SCALE_STOP_FILE"}
    process = begun(HEEDS_NOT, environment)
    process.terminate()
    assert process.stdout.readline() == "asked\n"
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGKILL


def test_a_file_that_was_there_before_stays(tmp_path):
    file = tmp_path / "stop"
    file.touch()
    process = begun(HEEDS, {**os.environ, "NAR_SCALE_STOP_FILE": str(file)})
    assert process.wait(timeout=60) == 85
    assert file.exists()
