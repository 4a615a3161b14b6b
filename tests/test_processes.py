import os
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
