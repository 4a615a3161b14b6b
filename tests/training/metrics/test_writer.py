"""What a run has reported can be read again, whatever cut it short."""

import json
import os
import re
import resource
import signal
import time
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from nar_scale.config import validate_config
from nar_scale.training.metrics.events import EVENTS_FILE
from nar_scale.training.metrics.jsonl import MetricsLog
from nar_scale.training.metrics.names import METRICS, tensorboard_tag
from nar_scale.training.metrics.writer import METRICS_FILE, MetricsWriter

CONFIG = {
    "model": {"dim": 8, "depth": 1, "heads": 1, "max_seq_len": 4},
    "objective": {"kind": "non_autoregressive"},
    "data": {"sources": {"prose": {"directory": "a"}, "code": {"directory": "b"}}},
    "optimizer": {"learning_rate": 0.25},
    "training": {"steps": 9, "global_batch_size": 8, "micro_batch_size": 2},
    "logging": {"evaluate_every": 2},
}


@contextmanager
def writing(directory, step):
    writer = MetricsWriter(directory, step)
    yield writer
    writer.close()


def lines(directory):
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


def tensorboard(directory):
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    return events


def scalars(directory, name):
    return [(event.step, event.value) for event in tensorboard(directory).Scalars(name)]


def test_metrics_are_in_the_log_and_in_tensorboard_at_once(tmp_path):
    with writing(tmp_path, 0) as writer:
        before = time.time()
        writer.scalars(1, {"loss": 1.5, "mfu": float("nan")})
        writer.scalars(1, {"validation_code_nats_per_token": 2.0})
        first, second = lines(tmp_path)  # not only once everything is closed
        assert scalars(tmp_path, "main/loss") == [(1, 1.5)]
        assert scalars(tmp_path, "main/validation_code_nats_per_token") == [(1, 2.0)]
        assert "speed/mfu" not in tensorboard(tmp_path).Tags()["scalars"]
    assert before - 1 < first.pop("time") <= second.pop("time") < time.time() + 1
    assert 0 <= first.pop("elapsed_seconds") <= second.pop("elapsed_seconds") < 60
    assert first == {"step": 1, "loss": 1.5, "mfu": None}
    assert second == {"step": 1, "validation_code_nats_per_token": 2.0}


def test_samples_are_in_tensorboard_and_in_files(tmp_path):
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    with writing(tmp_path, 0) as writer:
        writer.texts(3, ["*one*\ntwo", "three"])
        writer.image(3, picture)
    events = tensorboard(tmp_path)
    (text,) = events.Tensors("samples/0/text_summary")
    assert (text.step, text.tensor_proto.string_val) == (3, [b"    *one*\n    two"])
    (image,) = events.Images("samples")
    assert (image.step, image.height, image.width) == (3, 3, 4)
    assert (tmp_path / "samples" / "step-000000003.txt").read_text() == "*one*\ntwo\n\n=====\n\nthree"
    for file in (tmp_path / "samples" / "step-000000003.png", BytesIO(image.encoded_image_string)):
        assert (np.asarray(Image.open(file).convert("L")) == picture).all()


def test_settings_are_text_and_hyperparameters_of_the_same_run(tmp_path):
    config = validate_config(CONFIG, "test")
    with writing(tmp_path, 0) as writer:
        writer.settings(config, {"zero_optimization": {"stage": 2}})
        writer.scalars(9, {"loss": 1.0})
    assert len(list((tmp_path / "tensorboard").rglob("*"))) == 1  # one file, no directory for hyperparameters
    events = tensorboard(tmp_path)
    (text,) = events.Tensors("settings/config/text_summary")
    assert b"      learning_rate: 0.25" in text.tensor_proto.string_val[0]
    (text,) = events.Tensors("settings/deepspeed/text_summary")
    assert b'"stage": 2' in text.tensor_proto.string_val[0]

    def plugin_data(tag):
        return HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)

    session = plugin_data("_hparams_/session_start_info").session_start_info.hparams
    assert session["optimizer.learning_rate"].number_value == 0.25
    assert session["objective.kind"].string_value == "non_autoregressive"
    assert session["training.global_batch_size"].number_value == 8
    assert not {"optimizer.betas", "data.sources.code.directory", "training.run_directory"} & set(session)
    shown = [info.name.tag for info in plugin_data("_hparams_/experiment").experiment.metric_infos]
    assert shown == ["main/loss", "main/validation_prose_nats_per_token", "main/validation_code_nats_per_token"]
    assert "main/loss" in events.Tags()["scalars"]


def test_charts_show_training_and_validation_together_and_every_metric_that_they_name(tmp_path):
    with writing(tmp_path, 0) as writer:
        writer.settings(validate_config(CONFIG, "test"), {})
    events = tensorboard(tmp_path)
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    tags = [tensorboard_tag(name) for name in (*METRICS, "masked_0.2_to_0.4", "validation_code_nats_per_token")]
    tags.append("events/resumed")
    shown = {
        title: {tag for tag in tags for expression in some if re.match(expression, tag)}
        for title, some in charts.items()
    }
    together = shown["loss, training and validation"]
    assert {"main/loss", "main/validation_nats_per_token", "main/validation_code_nats_per_token"} <= together
    assert all(shown.values())


def test_events_are_marks_with_a_text(tmp_path):
    with writing(tmp_path, 5) as writer:
        writer.event(5, "resumed", "went on from step 5")
    assert scalars(tmp_path, "events/resumed") == [(5, 1.0)]
    (text,) = tensorboard(tmp_path).Tensors("timeline/resumed/text_summary")
    assert (text.step, text.tensor_proto.string_val) == (5, [b"went on from step 5"])


def test_events_are_kept_when_steps_are_taken_back(tmp_path):
    with writing(tmp_path, 0) as writer:
        writer.event(9, "skipped_steps", "one")
        writer.rewind(5)
        with open(tmp_path / EVENTS_FILE, "a") as log:
            log.write('{"step": 5, "ki')  # a kill
        before = time.time()
        writer.event(5, "rolled_back", "back to step 5")
    first, cut, second = (tmp_path / EVENTS_FILE).read_text().splitlines()
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(cut)
    events = [json.loads(line) for line in (first, second)]
    assert [event["kind"] for event in events] == ["skipped_steps", "rolled_back"]
    assert (events[1]["step"], events[1]["text"]) == (5, "back to step 5")
    assert before - 1 < events[1]["time"] < time.time() + 1


def write_nine(directory):
    writer = MetricsWriter(directory, 0)
    for step in range(1, 10):
        writer.scalars(step, {"loss": float(step)})
    return writer


def test_a_resumed_run_forgets_the_steps_after_its_checkpoint(tmp_path):
    write_nine(tmp_path).close()
    with open(tmp_path / METRICS_FILE, "a") as log:
        log.write('{"step": 10, "lo')  # a kill
    elapsed = lines_of_steps_until(tmp_path, 5)[-1]["elapsed_seconds"]
    with writing(tmp_path, 5) as writer:
        writer.scalars(6, {"loss": -6.0})
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.0), (6, -6.0)]
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == expected
    assert scalars(tmp_path, "main/loss") == expected
    assert lines(tmp_path)[-1]["elapsed_seconds"] >= elapsed


def lines_of_steps_until(directory, step):
    whole = [line for line in (directory / METRICS_FILE).read_text().splitlines() if line.endswith("}")]
    return [line for line in map(json.loads, whole) if line["step"] <= step]


def test_a_run_that_goes_back_forgets_what_it_has_undone(tmp_path):
    writer = write_nine(tmp_path)
    writer.rewind(7)
    writer.scalars(8, {"loss": -8.0})
    writer.close()
    expected = [*((step, float(step)) for step in range(1, 8)), (8, -8.0)]
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == expected
    assert scalars(tmp_path, "main/loss") == expected


def test_a_kill_cuts_the_last_line_at_most(tmp_path):
    path = tmp_path / METRICS_FILE
    child = os.fork()
    if child == 0:
        log = MetricsLog(path, 0)
        step = 0
        while True:
            step += 1
            log.write(step, {f"name-{number}": 1.0 for number in range(100)})
    while not path.exists() or path.stat().st_size < 1e6:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    *whole, _cut = path.read_bytes().split(b"\n")
    assert [json.loads(line)["step"] for line in whole] == list(range(1, len(whole) + 1))
    MetricsLog(path, len(whole)).close()
    assert path.read_bytes() == b"".join(line + b"\n" for line in whole)


def test_a_full_disk_leaves_whole_lines(tmp_path):
    log = MetricsLog(tmp_path / METRICS_FILE, 0)
    log.write(1, {"loss": 1.0})
    before = (tmp_path / METRICS_FILE).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))  # then a part of a line is written
    try:
        with pytest.raises(OSError, match="too large"):
            log.write(2, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / METRICS_FILE).read_bytes() == before
    log.write(2, {"loss": 2.0})
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_directory_that_is_missing_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        MetricsWriter(tmp_path / "missing", 0)
