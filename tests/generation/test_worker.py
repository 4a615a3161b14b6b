"""Workers on a real consolidated checkpoint."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from nar_scale.commands.generate import main as generate_command
from nar_scale.data import ByteTokenizer
from nar_scale.errors import UserError
from nar_scale.fleet import claim_output
from nar_scale.generation import SamplingOptions, generate, generate_directly, read_requests, samples_from_scratch
from nar_scale.generation.encoding import fill_gaps
from tests.errors import refused
from tests.generation.helpers import KINDS, export

SCRIPT = Path(__file__).parents[2] / "launcher" / "generate.py"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return {kind: export(tmp_path_factory.mktemp("exported") / kind, kind) for kind in KINDS}


def results(paths):
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def run(checkpoint, output, requests, options=None, **arguments):
    return generate(checkpoint, output, requests, options or SamplingOptions(seed=3), progress=False, **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_and_batches_change_nothing(checkpoints, tmp_path, kind):
    requests = samples_from_scratch(11)
    alone = run(checkpoints[kind], tmp_path / "alone", requests, part_size=3)
    assert [path.name for path in alone] == [f"part-{part:05d}.jsonl" for part in range(4)]
    with ThreadPoolExecutor(3) as pool:
        others = {"part_size": 3, "batch_size": 2, "device": "cpu"}
        working = [pool.submit(run, checkpoints[kind], tmp_path / "shared", requests, **others) for _ in range(3)]
        shared = [worker.result() for worker in working]
    for paths in shared:
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in alone]
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {"generation.json", *(one.name for one in alone)}
    assert [sample["number"] for sample in results(alone)] == list(range(11))
    assert len({sample["generated"] for sample in results(alone)}) == 11
    other_seed = run(checkpoints[kind], tmp_path / "other", requests, SamplingOptions(seed=4), part_size=3)
    assert results(other_seed) != results(alone)


def test_finished_parts_are_kept_and_missing_ones_made_again(checkpoints, tmp_path):
    requests = samples_from_scratch(6)
    paths = run(checkpoints[KINDS[0]], tmp_path, requests, part_size=2)
    before = [path.read_text() for path in paths]
    kept = paths[0].stat().st_mtime_ns
    paths[1].unlink()
    run(checkpoints[KINDS[0]], tmp_path, requests, part_size=2)
    assert [path.read_text() for path in paths] == before
    assert paths[0].stat().st_mtime_ns == kept


def test_of_two_workers_that_want_other_samples_at_once_one_is_refused(tmp_path):
    def claim(output, seed, barrier):
        barrier.wait(10)
        try:
            claim_output(output, {"sampling": {"seed": seed}})
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        for number in range(40):
            output, barrier = tmp_path / str(number), Barrier(2)
            claims = [pool.submit(claim, output, seed, barrier) for seed in (0, 1)]
            (message,) = [claim.result() for claim in claims if claim.result() is not None]
            assert "sampling" in message
            assert [path.name for path in output.iterdir()] == ["generation.json"]


def test_other_options_or_requests_are_refused(checkpoints, tmp_path):
    run(checkpoints[KINDS[0]], tmp_path, samples_from_scratch(2))
    with refused(UserError, tmp_path, "decoding", "generation.json"):
        run(checkpoints[KINDS[0]], tmp_path, samples_from_scratch(2), SamplingOptions(seed=3, temperature=0.5))
    with refused(UserError, tmp_path, "requests", "count"):
        run(checkpoints[KINDS[0]], tmp_path, samples_from_scratch(3))
    with refused(UserError, tmp_path, "checkpoint"):
        run(checkpoints[KINDS[1]], tmp_path, samples_from_scratch(2))


def prompts(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_requests(path)


def test_gaps_are_filled_and_the_rest_stays(checkpoints, tmp_path):
    requests = prompts(tmp_path / "p.jsonl", {"text": "ab<mask:3>cd<mask>e"}, {"prompt": "start "})
    gaps, prefix = results(run(checkpoints["non_autoregressive"], tmp_path / "out", requests))
    assert len(gaps["tokens"]) == 9
    assert bytes(gaps["tokens"][index] for index in (0, 1, 5, 6, 8)) == b"abcde"
    assert max(gaps["tokens"]) < 257
    assert gaps["network_calls"] <= 4
    assert bytes(prefix["tokens"][:6]) == b"start "
    assert len(prefix["tokens"]) == 24


def test_ragged_prompts_are_continued_each_as_alone(checkpoints, tmp_path):
    together = prompts(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "abcdef"}, {"prompt": "b"})
    samples = results(run(checkpoints["autoregressive"], tmp_path / "out", together))
    assert [sample["prompt"] for sample in samples] == ["a", "abcdef", "b"]
    for number, request in enumerate(together):
        assert list(generate_directly(checkpoints["autoregressive"], [request], SamplingOptions(seed=3))) == [
            samples[number]
        ]


@pytest.mark.parametrize(
    ("kind", "line", "named"),
    [
        ("autoregressive", {"text": "a<mask>"}, ["gaps", "'prompt'"]),
        ("non_autoregressive", {"text": "no gap"}, ["'no gap'", "<mask>"]),
        ("non_autoregressive", {"prompt": "x" * 25}, ["25 tokens", 24]),
        ("autoregressive", {"prompt": "x" * 24}, ["24 tokens"]),
    ],
)
def test_prompts_that_do_not_fit(checkpoints, tmp_path, kind, line, named):
    with refused(UserError, *named):
        run(checkpoints[kind], tmp_path / "out", prompts(tmp_path / "p.jsonl", line))


def test_fill_gaps():
    assert fill_gaps("<mask:2>a<mask>é", ByteTokenizer(), 257, 6) == [257, 257, 97, 257, 195, 169]


def test_the_script(checkpoints, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoints["autoregressive"]), "--output", str(tmp_path / "out")]
    assert generate_command([*arguments, "--num-samples", "2", "--print"]) == 0
    assert "--- 1 (" in capsys.readouterr().out
    assert generate_command([*arguments, "--prompts", "missing.jsonl"]) == 2
    assert capsys.readouterr().err.startswith("generate: error: cannot read the prompts missing.jsonl")
    assert generate_command(["--checkpoint", "nowhere", "--output", "out", "--num-samples", "2"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_worker_loads_no_training_library(checkpoints, tmp_path):
    program = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "assert not {'deepspeed', 'webdataset', 'tensorboard'} & set(sys.modules), 'heavy imports'\n"
    )
    arguments = ["--checkpoint", str(checkpoints[KINDS[1]]), "--output", str(tmp_path), "--num-samples", "1"]
    code = f"import sys; sys.argv, sys.path[0] = {[str(SCRIPT), *arguments]!r}, {str(SCRIPT.parent)!r}\n{program}"
    subprocess.run([sys.executable, "-c", code], check=True)
