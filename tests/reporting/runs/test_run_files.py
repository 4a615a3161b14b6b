"""What a run directory says is read, whatever of it is damaged, missing or still being written."""

import json
from dataclasses import asdict

import pytest

from nar_scale.errors import ConfigError, DataError
from nar_scale.reporting.runs import read_run, read_runs
from nar_scale.training.fault_tolerance.run_lease import Holder, RunLease
from tests.errors import refused

from .made import an_image, run_directory, two_samples


def test_a_whole_run(tmp_path):
    def more(writer):
        two_samples(writer)
        writer.event(100, "resumed", "went on from there")

    run = read_run(run_directory(tmp_path / "whole", more))
    assert run.name == "whole"
    assert run.config.optimizer.learning_rate == 0.003
    assert [step for step, _ in run.series["loss"]] == list(range(10, 201, 10))
    assert [step for step, _ in run.series["validation_nats_per_token"]] == [50, 100, 150, 200]
    assert run.last("validation_standard_error") == 0.01
    assert run.last("validation_code_nats_per_token") is None
    assert [(event.step, event.kind, event.text) for event in run.events] == [(100, "resumed", "went on from there")]
    assert [step for step, _ in run.samples] == [100, 200]
    assert run.environment["ranks"] == 2
    assert run.environment["torch"]
    assert (run.step, run.state, run.remarks) == (200, "complete", [])
    assert run.first_time is not None
    assert run.last_time is not None
    assert run.first_time <= run.last_time


def test_images_are_samples(tmp_path):
    assert [path.suffix for _, path in read_run(run_directory(tmp_path / "run", an_image)).samples] == [".png"]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    run = read_run(run_directory(tmp_path / "run", lambda writer: writer.scalars(210, {"loss": float("nan")})))
    assert run.series["loss"][-1][0] == 200


@pytest.mark.parametrize(
    ("last_event", "state"), [(None, "ended early"), ("stopped", "stopped"), ("checkpoint", "ended early")]
)
def test_the_state_of_a_run_that_nobody_trains(tmp_path, last_event, state):
    def more(writer):
        if last_event:
            writer.event(100, last_event, "")

    assert read_run(run_directory(tmp_path / "run", more, steps=100)).state == state


def test_a_run_that_somebody_trains_is_running(tmp_path):
    directory = run_directory(tmp_path / "run", steps=100)
    with RunLease(directory, on_loss=pytest.fail) as lease:
        lease.acquire()
        assert read_run(directory).state == "running"
    assert read_run(directory).state == "ended early"


def test_a_lease_that_a_killed_process_has_left_behind_is_no_run(tmp_path):
    directory = run_directory(tmp_path / "run", steps=100)
    left = {**asdict(Holder.of_this_process()), "started": 1.0}
    (directory / "lease-1.json").write_text(json.dumps(left))
    assert read_run(directory).state == "ended early"


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    directory = run_directory(tmp_path / "run")
    with open(directory / "metrics.jsonl", "a") as log:
        log.write('{"step": 210, "lo')
    run = read_run(directory)
    assert (run.step, run.remarks) == (200, [])


def test_damage_is_passed_over_with_a_remark_that_names_it(tmp_path):
    directory = run_directory(tmp_path / "run")
    lines = (directory / "metrics.jsonl").read_bytes().split(b"\n")
    lines[1], lines[2] = b"\xff\x00", b"[" * 100_000
    (directory / "metrics.jsonl").write_bytes(b"\n".join(lines))
    (directory / "events.jsonl").write_text('{"step": "7"}\nnothing\n')
    (directory / "environment.json").write_text("[]")
    run = read_run(directory)
    assert len(run.series["loss"]) == 18
    assert (list(run.events), run.environment) == ([], {})
    remarks = "\n".join(run.remarks)
    assert all(name in remarks for name in ("metrics.jsonl: 2 of 24", "events.jsonl: 1 of 2", "environment.json"))


def test_a_run_of_an_earlier_version_has_no_events_and_no_environment(tmp_path):
    directory = run_directory(tmp_path / "run")
    (directory / "environment.json").unlink()
    run = read_run(directory)
    assert (run.state, list(run.events), run.environment, run.remarks) == ("complete", [], {}, [])


def test_what_is_no_run_is_refused(tmp_path):
    with refused(DataError, tmp_path / "nowhere"):
        read_run(tmp_path / "nowhere")
    with refused(DataError, tmp_path, "config.yaml"):
        read_run(tmp_path)


def test_a_run_that_has_reported_nothing_is_refused(tmp_path):
    directory = run_directory(tmp_path / "run", steps=0)
    with refused(DataError, directory, "logging.every", 10):
        read_run(directory)
    (directory / "metrics.jsonl").unlink()
    with refused(DataError, directory):
        read_run(directory)


def test_settings_that_cannot_be_read_are_refused(tmp_path):
    directory = run_directory(tmp_path / "run")
    (directory / "config.yaml").write_text("model: [")
    with refused(ConfigError, directory / "config.yaml"):
        read_run(directory)


def test_runs_of_one_name_are_told_apart(tmp_path):
    paths = [run_directory(tmp_path / parent / name) for parent, name in (("a", "x"), ("b", "x"), ("b", "y"))]
    assert [run.name for run in read_runs(paths)] == [str(paths[0]), str(paths[1]), "y"]
