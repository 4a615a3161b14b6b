"""Run many commands by one process, which imports what they need once."""

import json
import subprocess
import sys
from pathlib import Path

from tests.distributed.jobs import environment

REPOSITORY = Path(__file__).parents[2]


def run_all(commands: list[tuple[str, Path, dict[str, str]]], directory: Path, timeout: float) -> list[tuple[int, str]]:
    """Exit status and output of commands, run one after the other by one process.

    Args:
        commands: each a command as `tests.mistakes.driver` takes it, a working directory, and environment variables.
        directory: for files of ours.
        timeout: in seconds, for all of them.
    """
    cases = directory / "cases.json"
    cases.write_text(json.dumps([(command, str(where), variables) for command, where, variables in commands]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.mistakes.driver", str(cases)],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=timeout,
    )
    cases.unlink()
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
