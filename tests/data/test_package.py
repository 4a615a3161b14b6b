import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_importing_the_room_is_light():
    check = (
        "import sys, nar_scale.data; print([m for m in ('webdataset', 'deepspeed', 'tensorboard') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
