import subprocess
import sys

import pytest

SCRIPT = """
import logging
from nar_scale.logging_setup import set_up_logging
{set_up}
logger = logging.getLogger("nar_scale.training.run")
logger.debug("a detail")
logger.info("as expected %d", 1)
logger.warning("a warning")
logger.error("an error")
"""


def output_of(set_up):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(set_up=set_up)], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_a_script_shows_messages_alone_and_warnings_on_standard_error():
    assert output_of("set_up_logging(); set_up_logging()") == (["as expected 1"], ["a warning", "an error"])


def test_a_caller_of_the_library_routes_its_messages():
    set_up = "import sys; logging.basicConfig(stream=sys.stdout, level='DEBUG', format='%(name)s: %(message)s')"
    lines, errors = output_of(set_up)
    assert lines == [
        f"nar_scale.training.run: {line}" for line in ("a detail", "as expected 1", "a warning", "an error")
    ]
    assert errors == []


def test_a_caller_of_the_library_can_silence_it():
    assert output_of("logging.getLogger('nar_scale').setLevel('CRITICAL')") == ([], [])


def test_importing_sets_nothing_up():
    code = "import logging, nar_scale.logging_setup; print(logging.getLogger('nar_scale').handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


@pytest.mark.parametrize("silent", [False, True])
def test_warnings_of_libraries_are_shown_only_on_request(silent):
    code = f"""
import logging, warnings
from deepspeed.utils import logger
from nar_scale.logging_setup import silence_libraries
handler = logging.StreamHandler()
for one in (logger, logging.getLogger("program")):
    one.addHandler(handler)
if {silent}:
    silence_libraries()
warnings.warn("a warning of Python")
logger.warning("a warning of DeepSpeed")
logger.error("an error of DeepSpeed")
logging.getLogger("program").warning("a warning of the program")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = done.stdout + done.stderr
    assert "an error of DeepSpeed" in shown
    assert "a warning of the program" in shown
    assert [f"a warning of {name}" in shown for name in ("Python", "DeepSpeed")] == [not silent] * 2
