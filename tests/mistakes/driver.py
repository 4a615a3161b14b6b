"""Run commands in forks of a process that has imported what they import.

python -m tests.mistakes.driver FILE, a JSON list of [command, working directory, environment]

A command begins with the name of a script of launcher/, with `nar-scale`, or with `deepspeed`, which starts processes
of its own. `< FILE` at its end is its standard input.

Prints for each a line of JSON: [exit status, output].
"""

import json
import os
import runpy
import shlex
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from tests.preload import import_everything

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as launcher/train.py does

LAUNCHER = Path(__file__).parents[2] / "launcher"
LONGEST_SECONDS = 240


def run(script: str, arguments: list[str], directory: str, environment: dict[str, str]) -> int:
    """The exit status of a script that is run as `python launcher/SCRIPT.py`."""
    os.chdir(directory)
    os.environ.update(environment)
    if arguments[-2:-1] == ["<"]:
        os.dup2(os.open(arguments[-1], os.O_RDONLY), 0)
        arguments = arguments[:-2]
    if script == "deepspeed":
        signal.alarm(0)  # several processes that import everything anew: `run_all` has a limit of its own
        os.execvp(script, [script, *arguments])
    path = LAUNCHER / f"{script}.py"
    sys.argv, sys.path[0] = [str(path), *arguments], str(LAUNCHER)
    try:
        if script == "nar-scale":
            from nar_scale.commands.console import main

            main()
        else:
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_case(script: str, arguments: list[str], directory: str, environment: dict[str, str]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            signal.alarm(LONGEST_SECONDS)
            status = run(script, arguments, directory, environment)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        return status, output.read().decode(errors="replace")


if __name__ == "__main__":
    import_everything()
    for case in json.loads(Path(sys.argv[-1]).read_text()):
        command, directory, environment = case
        script, *arguments = shlex.split(command)
        print(json.dumps(run_case(script, arguments, directory, environment)), flush=True)
