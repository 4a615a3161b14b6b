"""What version 0.1 has written still loads, resumes and generates the same.

`version_0_1.tar.xz` holds a prepared data set and, for each of three runs of two ranks (8 steps of 8 sequences of 16
tokens), the checkpoint of step 4, the consolidated model of step 8, and `expected.json`: the loss of each step in nats,
the tokens of three samples with seed 1, and the likelihood of the validation split in nats per token.
"""

import json
import tarfile
from pathlib import Path

import pytest

from nar_scale.checkpoint import load_consolidated
from nar_scale.config import load_config
from nar_scale.evaluation import evaluate_dataset
from nar_scale.generation import SamplingOptions, generate, samples_from_scratch
from tests.distributed import jobs

END = 256
RUNS = ("nar_adamw", "ar_muon", "block_lion")
ROUNDING = 1e-5  # relative; another kind of CPU adds up in another order


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("version_0_1")
    with tarfile.open(Path(__file__).with_name("version_0_1.tar.xz")) as tar:
        tar.extractall(directory, filter="data")
    return directory


def expected(archive, run):
    return json.loads((archive / run / "expected.json").read_text())


@pytest.fixture(scope="module")
def resumed(archive):
    """The losses of steps 5 to 8 of each run, resumed from its checkpoint of step 4."""
    cases = [
        (
            archive / run / "config.yaml",
            [f"data.directory={archive / 'data'}", f"training.run_directory={archive / run / 'run'}"],
        )
        for run in RUNS
    ]
    jobs.train_in_one_launch(archive, *cases)
    return {run: jobs.losses(archive / run / "run") for run in RUNS}


@pytest.mark.parametrize("run", RUNS)
def test_a_checkpoint_resumes_with_the_losses_of_the_unbroken_run(archive, resumed, run):
    losses = expected(archive, run)["losses"]
    assert resumed[run] == pytest.approx({step: losses[str(step)] for step in range(5, 9)}, rel=ROUNDING)


@pytest.mark.parametrize("run", RUNS)
def test_an_exported_model_generates_the_same_tokens(archive, tmp_path, run):
    options = SamplingOptions(seed=1)
    (part,) = generate(archive / run / "exported", tmp_path, samples_from_scratch(3), options, progress=False)
    tokens = [json.loads(line)["tokens"] for line in part.read_text().splitlines()]
    samples = expected(archive, run)["samples"]
    if load_config(archive / run / "exported" / "config.yaml").objective.kind == "block_diffusion":
        samples = [sample[: [*sample, END].index(END)] for sample in samples]  # which end at the end token since then
    assert tokens == samples


@pytest.mark.parametrize("run", RUNS)
def test_an_exported_model_has_the_same_likelihood(archive, run):
    model = load_consolidated(archive / run / "exported", "cpu")
    document_field = model.config.data.document_field
    likelihood = evaluate_dataset(
        model.wrapper, str(archive / "data"), model.info.vocabulary_size, document_field=document_field
    )
    assert likelihood.nats_per_token == pytest.approx(expected(archive, run)["evaluation"], rel=ROUNDING)
