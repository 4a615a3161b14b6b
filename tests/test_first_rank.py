"""An error before the ranks are connected is told by the first rank that meets it, and by one that meets it alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nar_scale.first_rank import seconds_after_first_rank
from tests.errors import assert_names

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "launcher" / "train.py")


@pytest.mark.parametrize(
    ("environment", "turn"),
    [
        ({}, 0),
        ({"RANK": "0", "LOCAL_RANK": "0"}, 0),
        ({"RANK": "8", "LOCAL_RANK": "0"}, 1),
        ({"RANK": "9", "LOCAL_RANK": "1"}, 2),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 0),
        ({"SLURM_PROCID": "8", "SLURM_LOCALID": "0"}, 1),
        ({"SLURM_PROCID": "9", "SLURM_LOCALID": "1"}, 2),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "RANK": "0", "LOCAL_RANK": "0"}, 0),  # torchrun in a task of srun
        ({"RANK": "first", "LOCAL_RANK": "0"}, 0),  # which is the error to be told
    ],
)
def test_the_first_rank_of_all_comes_first_and_then_that_of_each_node(environment, turn):
    turns = [seconds_after_first_rank({"RANK": rank, "LOCAL_RANK": local}) for rank, local in ("00", "10", "11")]
    assert turns == sorted(set(turns))
    assert seconds_after_first_rank(environment) == turns[turn]


def test_a_rank_that_fails_alone_tells_it_in_the_end(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['deepspeed'] = None")
    alone = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    under_srun = {"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    lacking = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    cases = (
        (["--no-such-option", "--config", "x"], alone, "--no-such-option"),
        (["--config", "nowhere.yaml"], alone, "nowhere.yaml"),
        (["--config", "nowhere.yaml"], {**under_srun, **lacking}, "deepspeed"),
    )
    given = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    start = time.monotonic()
    started = [
        subprocess.Popen(
            [sys.executable, TRAIN, *arguments],
            env={**given, **environment},
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for arguments, environment, _ in cases
    ]
    for process, (*_, named) in zip(started, cases, strict=True):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 2, output
        assert_names(output.removesuffix("\n"), "train", named)
        assert time.monotonic() - start >= seconds_after_first_rank(alone)
