"""Reports about checkpoints, as a user asks for them."""

import json
import math
import re
import sys
from itertools import combinations

import pytest
from PIL import Image

from nar_scale.commands.evaluate import main
from nar_scale.config import RandomDecoding
from nar_scale.data import ByteTokenizer
from nar_scale.evaluation import Likelihood
from nar_scale.evaluation.likelihood import MeanLoss
from nar_scale.reporting import Report, picture
from nar_scale.reporting.frontier import FrontierPoint, TextQuality, at_entropy, measure_samples, typical_point
from nar_scale.reporting.markdown import render_markdown
from nar_scale.reporting.report import ModelReport
from nar_scale.reporting.sampling import SampleSet, Setting
from nar_scale.text import printable
from tests.data.preparation.preparing import made, write_tokenizer
from tests.errors import assert_names
from tests.generation.helpers import export, export_with_tokenizer

KINDS = {"ar": "autoregressive", "nar": "non_autoregressive", "block": "block_diffusion", "both": "hybrid"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Untrained models of all kinds, and two data sets."""
    root = tmp_path_factory.mktemp("given")
    for name, text in {"prose": "a few words, and not many of them. ", "code": "def f(x): return x\n"}.items():
        (root / name).mkdir()
        for number in range(12):
            (root / name / f"{number}.txt").write_text(f"{number} {text}" * 8)
        made(root / name, root / "data" / name, seq_len=24, validation=0.4)
    for name, kind in KINDS.items():
        export(root / name, kind)
    return root


def arguments(given, *names, sources=("prose",)):
    data = [str(given / "data" / source) for source in sources]
    return ["--checkpoint", *(str(given / name) for name in names), "--data", *data]


SAMPLES = ["--samples", "3", "--temperatures", "0.5", "1", "--steps", "2", "6", "--training-samples", "50"]


@pytest.fixture(scope="module")
def report(given, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "new"
    reference = ["--reference-checkpoint", str(given / "ar")]
    command = [*arguments(given, *KINDS, sources=("prose", "code")), "--report", str(directory), *SAMPLES, *reference]
    assert main(command) == 0
    return directory


def test_the_numbers_of_a_report_are_those_of_a_single_evaluation(given, report, tmp_path):
    models = json.loads((report / "report.json").read_text())["models"]
    for name, described in zip(KINDS, models):
        output = tmp_path / f"{name}.json"
        assert main([*arguments(given, name, sources=("prose", "code")), "--output", str(output)]) == 0
        alone = json.loads(output.read_text())
        assert described["name"] == name
        assert described["likelihood"]["nats_per_token"] == alone["nats_per_token"]
        assert described["sources"] == alone["by_source"]
        assert set(alone["by_source"]) == {"prose", "code"}
        assert sum(source["tokens"] for source in alone["by_source"].values()) == alone["tokens"]


def test_the_estimator_and_the_masked_fractions_are_in_the_result(report):
    ar, nar, block, both = json.loads((report / "report.json").read_text())["models"]
    assert ar["likelihood"]["estimator"] == "exact NLL, left to right"
    assert ar["likelihood"]["by_masked_fraction"] == {}
    for model in (nar, block):
        assert model["likelihood"]["estimator"].startswith("NELBO")
        assert "seed 20240611" in model["likelihood"]["estimator"]
        assert set(model["likelihood"]["by_masked_fraction"]) <= {
            f"masked_0.{i}_to_0.{i + 2}" for i in (0, 2, 4, 6)
        } | {"masked_0.8_to_1.0"}
    assert "blocks of 8" in block["likelihood"]["estimator"]
    assert both["likelihood"]["estimator"] == ar["likelihood"]["estimator"]
    assert both["likelihood"]["bound"]["nats_per_token"] > 0
    tokens = both["likelihood"]["tokens"] + both["likelihood"]["sequences"]  # the first of each has a bound too
    assert both["likelihood"]["bound"]["tokens"] == tokens


def test_samples_are_a_grid_with_quality_and_cost(report):
    content = json.loads((report / "report.json").read_text())
    ar, nar, block, both = (model["points"] for model in content["models"])
    assert [point["setting"] for point in ar] == [
        {"temperature": t, "sampler": None, "steps": None} for t in (0.5, 1.0)
    ]
    assert [(point["setting"]["steps"], point["setting"]["temperature"]) for point in nar] == [
        (2, 0.5),
        (2, 1.0),
        (6, 0.5),
        (6, 1.0),
    ]
    assert [point["setting"]["sampler"] for point in both] == ["self_speculative"] * 2 + ["random"] * 4
    for point in nar:
        assert point["calls_per_sample"] == point["setting"]["steps"]
        assert point["tokens_per_call"] == pytest.approx(24 / point["setting"]["steps"])
    for point in [*ar, *nar, *block, *both]:
        quality = point["quality"]
        assert point["tokens_per_second"] > 0
        assert quality["samples"] == 3
        assert quality["generative_perplexity"] > 1
        assert 0 <= quality["entropy"] <= math.log(quality["tokens_per_sample"]) + 1e-9
        assert list(quality["distinct"]) == ["1", "2", "3", "4"]
    text = content["validation_text"]
    assert text["samples"] == 3
    assert text["known_words"] > 0.9  # all documents are alike


def test_the_text_and_the_picture_show_all_models(report):
    text = (report / "report.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    for name in KINDS:
        assert rows.count(name) >= 3  # likelihoods, and samples twice
    assert "(report.png)" in text
    assert " generative perplexity | entropy |" in text
    for model in json.loads((report / "report.json").read_text())["models"]:
        ((heading, sample),) = [part for part in samples_in(text) if part[0].startswith(f"**{model['name']}**")]
        described = {str(Setting(**point["setting"])): shown(point["sample"]) for point in model["points"]}
        assert described[heading.partition(", ")[2].removesuffix(":")] == sample
    widths = {len(line.split(" | ")) for line in text.splitlines() if line.startswith(("| ar ", "| evaluated text "))}
    assert len(widths) == 2  # of the table of likelihoods and that of samples
    with Image.open(report / "report.png") as picture:
        assert min(picture.size) > 600
        assert len(picture.convert("L").getcolors(256)) > 20


def samples_in(text):
    """The line above each code block, and the block."""
    return [
        (heading, block) for heading, _, block in re.findall(r"^([^\n]+)\n\n(`{3,})\n(.*?)\n\2$", text, re.M | re.S)
    ]


def shown(sample):
    return "\n".join(printable(line.expandtabs(4)) for line in sample.split("\n"))


def test_samplers_have_settings_and_those_without_a_schedule_no_steps(given, tmp_path):
    samples = ["--samples", "2", "--temperatures", "1", "--steps", "3", "--training-samples", "0"]
    samplers = ["--samplers", "threshold:threshold=0.0005", "threshold:threshold=1.0", "random"]
    assert main([*arguments(given, "nar"), "--report", str(tmp_path), *samples, *samplers]) == 0
    points = json.loads((tmp_path / "report.json").read_text())["models"][0]["points"]
    assert [point["setting"]["sampler"] for point in points] == samplers[1:]
    assert [point["setting"]["steps"] for point in points] == [None, None, 3]
    assert [point["calls_per_sample"] for point in points] == [
        1,
        24,
        3,
    ]  # none of 257 tokens is as improbable as 0.0005
    text = (tmp_path / "report.md").read_text()
    assert " entropy | distinct-1 |" in text
    assert not any(column in text for column in (" generative perplexity |", " known words |"))  # not measured


@pytest.mark.parametrize("sampler", ["threshold:treshold=0.5", "threshold:threshold=2", "random:threshold=0.5", "no"])
def test_settings_that_a_sampler_does_not_have_are_named(given, tmp_path, capsys, sampler):
    # of several checkpoints, that of the last one is refused before the first is evaluated, too
    command = [*arguments(given, "ar", "nar"), "--report", str(tmp_path), "--samples", "2", "--samplers", sampler]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert_names(line, sampler.partition(":")[2].partition("=")[0] or "no")


def test_what_a_setting_does_not_name_is_that_of_the_checkpoint_and_said(given, tmp_path):
    own = {"sampler": "threshold", "threshold": 0.0005, "top_p": 0.05, "steps": None}
    export(tmp_path / "narrow", "non_autoregressive", decoding=own)
    samples = ["--samples", "2", "--temperatures", "1", "--training-samples", "0"]
    checkpoints = arguments(given, "nar", str(tmp_path / "narrow"))
    assert main([*checkpoints, "--report", str(tmp_path / "report"), *samples]) == 0
    wide, narrow = json.loads((tmp_path / "report" / "report.json").read_text())["models"]
    assert {point["setting"]["sampler"] for point in wide["points"]} == {"random"}
    (point,) = narrow["points"]
    assert (point["setting"]["sampler"], point["calls_per_sample"]) == ("threshold", 1)
    assert (wide["decoding"]["top_p"], narrow["decoding"]["top_p"]) == (None, 0.05)
    (line,) = [line for line in (tmp_path / "report" / "report.md").read_text().splitlines() if "`decoding`" in line]
    assert_names(line, "nar: none", "narrow: `top_p` 0.05, `threshold` 0.0005", "differs")


def test_likelihoods_alone_need_no_samples(given, tmp_path):
    assert main([*arguments(given, "nar"), "--report", str(tmp_path), "--samples", "0"]) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["validation_text"] is None
    assert content["models"][0]["points"] == []
    assert "Samples" not in (tmp_path / "report.md").read_text()


def test_models_with_other_tokenizers_are_compared_on_the_same_text(given, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    export_with_tokenizer(tmp_path / "bpe", tokenizer)
    command = [*arguments(given, "nar"), "--report", str(tmp_path), "--samples", "0"]
    command.insert(1, str(tmp_path / "bpe"))
    assert main(command) == 0
    anew, direct = json.loads((tmp_path / "report.json").read_text())["models"]
    assert (anew["reencoded"], direct["reencoded"]) == (True, False)
    assert anew["likelihood"]["bits_per_byte"] > 0


def test_mauve_is_measured_when_asked_for(given, tmp_path):
    reference = ["--reference-checkpoint", str(given / "ar"), "--mauve"]
    samples = ["--samples", "24", "--temperatures", "1", "--training-samples", "0"]
    assert main([*arguments(given, "ar"), "--report", str(tmp_path), *samples, *reference]) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    (point,) = content["models"][0]["points"]
    assert 0 < point["quality"]["mauve"] <= 1
    assert content["validation_text"]["mauve"] is None
    assert "| MAUVE |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--mauve"], ["MAUVE", "--reference-checkpoint"]),
        (["--reference-checkpoint", "nowhere"], ["nowhere", "model.json", "config.json"]),
        (["--samples", "-1"], ["negative"]),
        (["--temperatures", "-0.5"], ["temperature", -0.5]),
        (["--limit", "0"], ["limit", 0]),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(given, tmp_path, capsys, change, named):
    assert main([*arguments(given, "ar"), "--report", str(tmp_path), *change]) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], *named)


@pytest.mark.parametrize(
    ("module", "extra", "more"),
    [("matplotlib.figure", "report", []), ("mauve", "mauve", ["--mauve", "--reference-checkpoint"])],
)
def test_an_extra_that_is_missing_is_named_before_anything_is_measured(
    given, tmp_path, capsys, monkeypatch, module, extra, more
):
    monkeypatch.setitem(sys.modules, module, None)
    command = [
        *arguments(given, "ar"),
        "--report",
        str(tmp_path / "report"),
        *more,
        *([str(given / "ar")] if more else []),
    ]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert_names(line, f"'nar_scale[{extra}]'")
    assert not list((tmp_path).glob("*/*"))


def test_a_report_that_cannot_be_written_is_refused_first(given, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([*arguments(given, "ar"), "--report", str(tmp_path / "file" / "report")]) == 2
    assert_names(capsys.readouterr().err.removesuffix("\n"), tmp_path / "file" / "report")


def test_sources_and_checkpoints_have_names_of_their_own(given, tmp_path, capsys):
    twice = [*arguments(given, "ar"), str(given / "data" / "prose"), "--output", str(tmp_path / "x.json")]
    assert main(twice) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "'prose'", "--data NAME=DIR")
    named = f"other={given / 'data' / 'prose'}"
    assert main([*arguments(given, "ar"), named, "--output", str(tmp_path / "x.json")]) == 0
    assert set(json.loads((tmp_path / "x.json").read_text())["by_source"]) == {"prose", "other"}
    assert main([*arguments(given, "ar", "ar"), "--report", str(tmp_path)]) == 2
    assert_names(capsys.readouterr().err.splitlines()[-1], "checkpoint", "twice")


def test_an_output_is_about_one_checkpoint(given, capsys):
    for wrong in ([*arguments(given, "ar", "nar"), "--output", "x"], arguments(given, "ar")):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "--report" in capsys.readouterr().err


def point(entropy, sampler=None, steps=None, temperature=1.0, perplexity=None, sample="", known_words=None):
    quality = TextQuality(1, 1, perplexity, perplexity and 1.0, None, entropy, {}, 0.0, known_words, 0)
    calls = steps or 10
    return FrontierPoint(Setting(temperature, sampler, steps), quality, calls, 64 / calls, 64 / calls, sample)


def test_samplers_are_compared_at_the_entropy_of_the_text():
    points = [point(1.0, "random", 4, 0.5), point(2.1, "random", 4, 1.0), point(2.6, "random", 8, 0.5), point(2.2)]
    chosen = at_entropy(points, 1.9)
    assert chosen == points[1:]
    assert at_entropy([], 1.0) == []


def test_the_sample_that_is_shown_is_of_the_best_setting_at_the_entropy_of_the_text():
    cold, fast, slow = point(1.0, "random", 8, 0.5), point(2.1, "random", 4), point(2.1, "random", 8)
    assert typical_point([cold, fast, slow], 2.0) is slow
    scored = [point(1.0, "random", 8, 0.5, 3.0), point(2.1, "random", 4, 1.0, 5.0), point(2.1, "random", 8, 1.0, 9.0)]
    assert typical_point(scored, 2.0) is scored[1]
    assert typical_point([], 2.0) is None


def test_the_beginning_of_the_first_sample_is_kept():
    samples = SampleSet(Setting(1.0), [["one", "two " * 200], ["another"]], 300, 300, 1.0)
    assert measure_samples(samples, None, ByteTokenizer(), None).sample == ("one\n" + "two " * 200)[:400]


OWN = RandomDecoding(sampler="random")


def report_of(*points, known_words=None, name="mine"):
    likelihood = Likelihood(2.0, 0.1, 10, 1, "bound", 1.0, "", {"masked_0.0_to_0.2": MeanLoss(1.0, 5)})
    model = ModelReport(name, f"exported/{name}", "non_autoregressive", 1, 1, likelihood, {}, False, OWN, list(points))
    text = point(2.0, known_words=known_words).quality
    return Report({"prose": "data/prose"}, "validation", None, 0, "a machine", [model], text)


def test_no_sample_ends_its_block_or_controls_the_terminal():
    sample = "text\n```\n# a heading\n````\n\ttab\x1b[2J\r\u202e\n   `````"
    ((heading, block),) = samples_in(render_markdown(report_of(point(2.0, "random", 8, sample=sample))))
    assert heading == "**mine**, random, 8 steps, temperature 1:"
    assert block == "text\n```\n# a heading\n````\n    tab\\x1b[2J\\x0d\\x202e\n   `````"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that have been drawn."""
    figures, figure_of = [], picture.import_figure()

    def keep(**options):
        figures.append(figure_of(**options))
        return figures[-1]

    monkeypatch.setattr(picture, "import_figure", lambda: keep)
    return figures


@pytest.mark.parametrize("count", [4, 12])
def test_the_numbers_of_steps_do_not_lie_over_each_other(drawn, count):
    points = [
        point(entropy, "random", 128 - place, temperature, known_words=0.9 + place / 1000)
        for place in range(count)
        for entropy, temperature in ((1.0, 0.5), (2.0, 1.0))
    ]
    picture.draw_picture(report_of(*points, known_words=0.5))
    (figure,) = drawn
    for axes in figure.axes[2:]:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text().isdigit()]
        assert len(boxes) == count
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        assert max(box.y1 for box in boxes) < axes.bbox.y1 + 2  # pixels


def test_network_calls_are_on_an_axis_of_powers_of_two(drawn):
    picture.draw_picture(report_of(*(point(1.0, "random", steps) for steps in (128, 64, 32, 8))))
    (figure,) = drawn
    (calls,) = [axes for axes in figure.axes if axes.get_xlabel() == "tokens a network call"]
    low, high = calls.get_xlim()
    assert [tick for tick in calls.get_xticks() if low <= tick <= high] == [0.5, 1, 2, 4, 8]


@pytest.mark.parametrize(("name", "rows"), [("mine", 1), ("a_name_of_a_checkpoint_that_is_rather_long", 2)])
def test_long_names_are_in_the_picture(drawn, name, rows):
    samplers = (None, "random", "entropy")
    picture.draw_picture(report_of(*(point(2.0, sampler, sampler and 8) for sampler in samplers), name=name))
    (figure,) = drawn
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert len({round(text.get_window_extent().y0) for text in legend.get_texts()}) == rows


def test_a_chart_that_is_alone_in_its_row_takes_all_of_it(drawn):
    report = report_of(point(2.0, "random", 8, known_words=0.5), known_words=0.9)
    picture.draw_picture(report)
    for model in report.models:
        model.likelihood.by_masked_fraction.clear()
    picture.draw_picture(report)
    assert [[axes.get_position().width > 0.7 for axes in figure.axes] for figure in drawn] == [
        [False, False, True, False, False],
        [True, True, False, False],
    ]
