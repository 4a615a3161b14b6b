"""What is measured while training, against the same numbers of a plain loop; and profiles of chosen steps."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nar_scale.config import load_config
from nar_scale.objectives import build_wrapper
from nar_scale.training.metrics.names import tensorboard_tag
from nar_scale.training.optimizers.build import parameter_groups
from nar_scale.training.optimizers.learning_rate import learning_rate_factor

from . import jobs
from .whole_batches import whole_batches

STEPS = 4
ALL = [f"training.steps={STEPS}", "schedule.warmup_steps=0", "logging.every=2", "training.ema_decay=0.9"]
STAGES = (0, 1, 2, 3)
CASES = {
    **{f"stage {stage}": [f"training.zero_stage={stage}"] for stage in STAGES},
    **{f"stage {stage}, bf16": [f"training.zero_stage={stage}", "training.precision=bf16"] for stage in STAGES},
    "watched": [
        "logging.profile_steps=[2, 9]",
        "logging.profile_ranks=[0, 1]",
        "logging.flops_step=2",
        "logging.peak_flops=1e9",
        "logging.evaluate_every=4",
        "logging.evaluation_samples=8",
        "logging.sample_every=4",
        "checkpoint.every=2",
        "training.zero_stage=3",
    ],
}


class Launch:
    """All cases, trained in one start of two ranks."""

    def __init__(self, directory: Path, corpus: Path):
        self.directory = directory
        self.config = jobs.write_config(directory / "small.yaml", corpus)
        cases = [
            (self.config, [*ALL, *settings, f"training.run_directory={directory / name}"])
            for name, settings in CASES.items()
        ]
        jobs.train_in_one_launch(directory, *cases)


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Launch:
    return Launch(tmp_path_factory.mktemp("monitored"), corpus)


def plain_loop(config_file: Path) -> dict[int, dict[str, float]]:
    """Update ratio, and cross-entropy by masked fraction, of each step."""
    config = load_config(config_file, [*ALL, "training.run_directory=none"])
    torch.manual_seed(config.training.seed)
    wrapper = build_wrapper(config, 257)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        parameter_groups(wrapper, settings.weight_decay), lr=settings.learning_rate, betas=settings.betas
    )
    found = {}
    for step, batch in zip(range(STEPS), whole_batches(config)):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_factor(config.schedule, step, STEPS)
        before = torch.cat([weight.detach().flatten() for weight in wrapper.parameters()])
        terms = wrapper.loss_terms(batch, seed=config.training.seed)
        optimizer.zero_grad()
        terms.total().backward()
        torch.nn.utils.clip_grad_norm_(wrapper.parameters(), settings.gradient_clipping)
        optimizer.step()
        after = torch.cat([weight.detach().flatten() for weight in wrapper.parameters()])
        found[step + 1] = {
            "update_ratio": float((after - before).norm() / before.norm()),
            **{name: pair.tolist() for name, pair in terms.metrics.items()},
        }
    return found


@pytest.fixture(scope="module")
def expected(launch: Launch) -> dict[int, dict[str, Any]]:
    return plain_loop(launch.config)


@pytest.mark.parametrize("stage", STAGES)
def test_the_update_ratio_is_that_of_a_plain_loop(launch: Launch, expected: dict, stage: int) -> None:
    for name, tolerance in ((f"stage {stage}", 1e-4), (f"stage {stage}, bf16", 0.05)):
        logged = jobs.metrics(launch.directory / name)
        assert list(logged) == [2, 4]
        for step, line in logged.items():
            assert line["update_ratio"] == pytest.approx(expected[step]["update_ratio"], rel=tolerance)


def test_losses_by_masked_fraction_are_those_of_whole_batches(launch: Launch, expected: dict) -> None:
    logged = jobs.metrics(launch.directory / "stage 2")
    bins = [f"masked_{number / 5:.1f}_to_{(number + 1) / 5:.1f}" for number in range(5)]
    assert [name for name in logged[2] if name.startswith("masked_")] == bins
    for last, line in logged.items():
        for name in bins:
            total, count = (sum(expected[step][name][i] for step in (last - 1, last)) for i in range(2))
            assert line[name] == pytest.approx(total / count, rel=1e-4)


def test_everything_is_reported(launch: Launch) -> None:
    directory = launch.directory / "watched"
    first, last = jobs.metrics(directory).values()
    assert last["tokens_per_second"] == pytest.approx(last["samples_per_second"] * jobs.SEQUENCE_LENGTH)
    assert last["samples_per_second"] == pytest.approx(last["steps_per_second"] * 8)
    config = load_config(directory / "config.yaml")
    model = build_wrapper(config, 257).net
    weights = sum(weight.numel() for weight in model.parameters()) - model.token_emb.weight.numel()
    flops = 6 * weights + 12 * 2 * 32 * jobs.SEQUENCE_LENGTH  # PaLM, appendix B
    assert last["mfu"] == pytest.approx(flops * last["tokens_per_second"] / (2 * 1e9))
    assert 0 <= last["data_wait_fraction"] < 1
    assert 0 < last["memory_now_gib"] <= last["memory_gib"]
    assert last["epoch"] == pytest.approx(2 * first["epoch"])
    assert "checkpoint_seconds" not in first
    assert 0 < last["checkpoint_seconds"] < 60
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {"evaluation_seconds", "sampling_seconds", "checkpoint_seconds"} <= set(lines[-1])
    times = [line["time"] for line in lines]
    assert times == sorted(times)

    happened = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"]) for event in happened] == [
        (0, "started"),
        (2, "checkpoint"),
        (4, "checkpoint"),
        (4, "complete"),
    ]
    environment = json.loads((directory / "environment.json").read_text())
    assert (environment["ranks"], environment["torch"]) == (2, torch.__version__)
    assert environment["parameters"] == sum(weight.numel() for weight in build_wrapper(config, 257).parameters())

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    named = {tensorboard_tag(name) for line in lines for name in line}
    assert set(events.Tags()["scalars"]) == named - {"main/step", "main/time", "main/elapsed_seconds"}
    assert {tag.partition("/")[0] for tag in named} == {"main", "loss_by_mask", "speed", "memory", "checkpoint", "data"}
    assert [event.step for event in events.Scalars("main/validation_nats_per_token")] == [4]
    assert [event.step for event in events.Tensors("samples/1/text_summary")] == [4]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_chosen_steps_are_traced_on_chosen_ranks_until_the_run_ends(launch: Launch) -> None:
    directory = launch.directory / "watched" / "profile"
    for rank in range(2):
        with gzip.open(directory / f"steps-2-to-4.rank-{rank}.pt.trace.json.gz") as file:
            names = {event["name"] for event in json.load(file)["traceEvents"] if "name" in event}
        assert {f"ProfilerStep#{step}" for step in (2, 3, 4)} <= names
        assert not {"ProfilerStep#1", "ProfilerStep#6"} & names
        assert any("all_reduce" in name or "allreduce" in name for name in names)
    assert len(list(directory.glob("*.json.gz"))) == 2
    account = (directory / "flops-step-2.txt").read_text()
    assert "Profile Summary at step 2" in account
    assert "world size:                                                             2" in account
    assert "(attn_layers)" in account
