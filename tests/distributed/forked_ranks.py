"""Run a script on several ranks, each a fork of one process that has imported what is slow to import.

python -m tests.distributed.forked_ranks RANKS PORT SCRIPT [ARGUMENT ...]

In place of the deepspeed launcher where that is not in question; the first rank that fails ends the others.
"""

import os
import runpy
import signal
import sys
from contextlib import suppress

from tests.preload import import_everything


def run_rank(rank: int, ranks: int, port: str, script: str, arguments: list[str]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))  # as Python does
    runpy.run_path(script, run_name="__main__")


def main(ranks: int, port: str, script: str, arguments: list[str]) -> int:
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            run_rank(rank, ranks, port, script, arguments)
            sys.exit()
        children.append(child)
    status = 0
    for _ in children:
        status = status or os.waitstatus_to_exitcode(os.wait()[1])
        if status:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
    return status


if __name__ == "__main__":
    import_everything()
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
