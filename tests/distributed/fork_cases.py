"""Run launcher/train.py's work with several sets of arguments, each in a fork: importing costs more than the work.

python -m tests.distributed.fork_cases FILE, a JSON list of argument lists; prints a JSON list of [exit status, output]
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from nar_scale.logging_setup import silence_libraries
from nar_scale.training import launch
from tests.preload import import_everything


def run_forked(
    config_file: str,
    overrides: list[str],
    resume: str,
    init_from: str | None = None,
    environment: dict[str, str] | None = None,
) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment or {})
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = launch(config_file, overrides, resume, init_from=Path(init_from) if init_from else None)
            sys.stdout.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        return status, output.read().decode()


if __name__ == "__main__":
    silence_libraries()
    import_everything()
    cases = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([run_forked(*case) for case in cases]))
