"""The page of runs, as the command writes it and a real browser shows it."""

import re
import sys

import pytest

from nar_scale.commands.report import main
from nar_scale.reporting.runs import read_run
from nar_scale.reporting.runs.contents import differing_settings, final_values, rows_of_events, settings_of_run
from nar_scale.reporting.runs.page import render_page
from tests.browser import browser, watch
from tests.errors import assert_names

from .made import an_image, run_directory, two_samples, write_evaluation

ATTACKS = (
    "<script>window.attacked = 1</script>",
    "<img src=x onerror='window.attacked = 1'>",
    "</pre></div><svg onload='window.attacked = 1'><iframe src='https://example.com/frame'></iframe>",
    "{{ 7 * 7 }} {% include '/etc/passwd' %} <link rel=stylesheet href='https://example.com/style.css'>",
)


@pytest.fixture(scope="module")
def opened():
    with browser() as opened:
        yield opened


def attacked_run(path):
    def more(writer):
        writer.texts(200, list(ATTACKS))
        writer.event(100, "resumed", ATTACKS[0])
        writer.event(100, ATTACKS[1], ATTACKS[2])
        writer.scalars(200, {f"validation_{ATTACKS[0]}_nats_per_token": 2.0})

    return run_directory(path, more, data={"directory": ATTACKS[1]})


def test_a_page_shows_what_lies_in_the_run(tmp_path, opened, capsys):
    def more(writer):
        two_samples(writer)
        writer.event(100, "resumed", "went on from step 100")

    directory = run_directory(tmp_path / "mine", more)
    assert main(["--run", str(directory)]) == 0
    assert capsys.readouterr().out == f"wrote {directory / 'report.html'}\n"
    address = f"file://{directory / 'report.html'}"
    seen = watch(opened, address)
    assert seen.requests == [address]  # nothing from elsewhere
    assert seen.said == []
    text = seen.page.inner_text("body")
    loss, bins = seen.page.locator("figure").all()[:2]
    assert [each.inner_text() for each in loss.locator(".legend span").all()] == [
        "training",
        "validation (upper bound)",
    ]
    assert [each.inner_text() for each in bins.locator(".legend span").all()] == [
        f"{low}-{low + 20} %" for low in range(0, 100, 20)
    ]
    assert loss.locator("svg path").count() == 3  # each report, their means, validation
    assert loss.locator("svg circle.dot").count() == 4
    assert "step 100" in loss.locator("line.rule title").text_content()
    titles = seen.page.locator("figcaption").all_inner_texts()
    assert any(title.startswith("Throughput") for title in titles)
    assert seen.page.locator("h1").inner_text().split() == ["mine", "complete"]
    assert "an early text" in text
    assert "a late text" in text
    assert "another late text" not in text  # folded
    seen.page.locator("summary").last.click()
    assert "another late text" in seen.page.inner_text("body")
    for row in ("optimizer.learning_rate\t0.003", "torch\t", "resumed\twent on from step 100", "200 of 200"):
        assert row in text
    assert "12,345 parameters" in text
    found = seen.colours(tmp_path / "page.png")
    assert {(0x36, 0x62, 0xD8), (0xE8, 0x59, 0x0C)} <= found  # the lines are there
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_images_are_shown_within_the_page(tmp_path, opened):
    directory = run_directory(tmp_path / "mine", an_image)
    assert main(["--run", str(directory)]) == 0
    seen = watch(opened, f"file://{directory / 'report.html'}")
    assert seen.page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])") == [
        [True, 8, 8]
    ]
    assert all(address.startswith(("file://", "data:")) for address in seen.requests)


def test_nothing_in_a_run_becomes_a_script_or_an_address(tmp_path, opened):
    directory = attacked_run(tmp_path / "<b>run</b>")
    output = tmp_path / "page.html"
    assert main(["--run", str(directory), "--output", str(output)]) == 0
    seen = watch(opened, f"file://{output}")
    assert seen.requests == [f"file://{output}"]
    assert seen.said == []  # nor was anything there for the policy of the page to stop
    assert seen.page.evaluate("window.attacked") is None
    for summary in seen.page.locator("summary").all():
        summary.click()
    text = seen.page.inner_text("body")
    assert all(attack in text for attack in ATTACKS)
    assert "<b>run</b>" in text
    assert seen.page.locator("script, iframe, img, link, object, form, b > svg").count() == 0


def test_the_policy_of_the_page_stops_a_script_all_the_same(tmp_path, opened):
    """A second wall: with the page's policy a script does not run, and without it this test would notice."""
    directory = run_directory(tmp_path / "run")
    assert main(["--run", str(directory)]) == 0
    page = (directory / "report.html").read_text()
    attacked = page.replace("<main>", f"<main>{ATTACKS[0]}{ATTACKS[1]}")
    bare = re.sub(r"<meta http-equiv[^>]*>", "", attacked)
    assert bare != attacked != page
    results = []
    for name, content in (("attacked", attacked), ("bare", bare)):
        (tmp_path / f"{name}.html").write_text(content)
        results.append(watch(opened, f"file://{tmp_path / f'{name}.html'}").page.evaluate("window.attacked"))
    assert results == [None, 1]


def test_runs_are_compared(tmp_path, opened, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_directory(tmp_path / "a", two_samples)
    run_directory(tmp_path / "b", steps=100, optimizer={"learning_rate": 0.001})
    assert main(["a", "--run", "b", "a"]) == 0
    assert capsys.readouterr().out == "wrote report.html\n"
    seen = watch(opened, f"file://{tmp_path / 'report.html'}", width=800)
    assert len(seen.requests) == 1
    text = seen.page.inner_text("body")
    assert "2 runs compared" in text
    titles = seen.page.locator("figcaption").all_inner_texts()
    assert titles[0].startswith("Validation")
    for figure in seen.page.locator("figure").all():
        bound = " (upper bound)" if figure.locator("figcaption").inner_text().startswith("Validation") else ""
        assert figure.locator(".legend span").all_inner_texts() == [f"b{bound}", f"a{bound}"]
        assert figure.locator("svg path").count() == 2
    assert "optimizer.learning_rate\t0.001\t0.003" in text
    assert "model.dim" not in text  # both have it
    assert "steps\t100 of 200\t200 of 200" in text
    assert "a, step 200" in text
    assert {(0x36, 0x62, 0xD8), (0xE8, 0x59, 0x0C)} <= seen.colours(tmp_path / "page.png")


@pytest.mark.parametrize("case", ["nowhere", "no run", "damaged settings", "nothing yet"])
def test_what_cannot_be_shown_is_told_in_one_line(tmp_path, case, capsys):
    directory = tmp_path / "run"
    if case in ("damaged settings", "nothing yet"):
        run_directory(directory, steps=0)
    if case == "damaged settings":
        (directory / "config.yaml").write_text("model: 7\n")
    if case == "no run":
        directory.mkdir()
    assert main(["--run", str(directory)]) == 2
    assert_names(capsys.readouterr().err.removesuffix("\n"), "report", directory)
    assert not (directory / "report.html").exists()


def test_a_page_that_cannot_be_written_is_told_in_one_line(tmp_path, capsys):
    assert main([str(run_directory(tmp_path / "run")), "--output", str(tmp_path / "missing" / "page.html")]) == 2
    assert_names(capsys.readouterr().err.removesuffix("\n"), tmp_path / "missing" / "page.html")


def test_an_evaluation_beside_the_run_is_shown(tmp_path, opened):
    directory = run_directory(tmp_path / "run")
    write_evaluation(directory, checkpoint=ATTACKS[0])
    other = run_directory(tmp_path / "other")
    assert main(["--run", str(directory)]) == 0
    seen = watch(opened, f"file://{directory / 'report.html'}")
    assert seen.page.evaluate("window.attacked") is None
    text = seen.page.inner_text("body")
    for row in (
        f"checkpoint\t{ATTACKS[0]}, step 200",
        "validation, nats/token\t1.5000 ± 0.0141 (upper bound; standard error over 1,280 tokens of 80 sequences)",
        "validation, bits/byte\t0.541",
        "validation, nats per masked token where 80-100 % are masked\t2.500 (256 tokens)",
        "estimator\tNELBO",
        "prose, nats/token\t2.0000 ± 0.0200 (upper bound; standard error over 640 tokens of 40 sequences)",
        "code, nats per masked token where 80-100 % are masked\t2.000 (128 tokens)",
    ):
        assert row in text
    assert main([str(directory), str(other), "--output", str(tmp_path / "both.html")]) == 0
    page = watch(opened, f"file://{tmp_path / 'both.html'}").page
    both = page.inner_text("body")
    assert "code, bits/byte\t0.361" in both
    assert page.locator("h2:has-text('Evaluation') + .box thead th").all_inner_texts() == ["", "run"]
    assert "No evaluation of other." in both
    assert "No evaluation of" not in text


@pytest.mark.parametrize("content", ["{", "[]", '{"nats_per_token": "much"}', "\udcff"])
def test_an_evaluation_that_is_none_is_left_out_and_named(tmp_path, capsys, content):
    directory = run_directory(tmp_path / "run")
    path = directory / "evaluation.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert main(["--run", str(directory)]) == 0
    assert_names(capsys.readouterr().err.removesuffix("\n"), path)
    assert "<h2>Evaluation" not in (directory / "report.html").read_text()


def test_damage_is_told_on_the_terminal_and_in_the_page(tmp_path, capsys):
    directory = run_directory(tmp_path / "run")
    (directory / "environment.json").write_text("{")
    assert main(["--run", str(directory)]) == 0
    assert_names(capsys.readouterr().err.removesuffix("\n"), directory / "environment.json")
    assert str(directory / "environment.json") in (directory / "report.html").read_text()


def test_a_run_must_be_given(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2
    assert "--run" in capsys.readouterr().err


def test_settings_beside_their_defaults(tmp_path):
    run = read_run(run_directory(tmp_path / "run", data={"document_field": "number"}))
    rows = {name: values[:2] for name, values in settings_of_run(run)}
    assert rows["optimizer.learning_rate"] == ["0.003", ""]  # which must be given
    assert rows["logging.evaluate_every"] == ["50", "0"]
    assert rows["data.document_field"] == ["number", "null"]
    assert "optimizer.weight_decay" not in rows
    other = read_run(run_directory(tmp_path / "other", optimizer={"kind": "muon"}))
    different = dict(differing_settings([run, other]))
    assert different["optimizer.kind"] == ["adamw", "muon"]
    assert "optimizer.muon_learning_rate" not in different  # the default of what one of them has
    assert "model.dim" not in different
    slower = read_run(run_directory(tmp_path / "slower", optimizer={"kind": "muon", "muon_learning_rate": 0.01}))
    assert dict(differing_settings([run, other, slower]))["optimizer.muon_learning_rate"] == ["", "0.02", "0.01"]


def test_settings_have_the_sentence_about_their_value(tmp_path):
    given = {"model": {"kv_heads": 1}, "optimizer": {"kind": "lion", "gradient_clipping": 2}}
    run = read_run(run_directory(tmp_path / "run", **given))
    meanings = {name: values[2] for name, values in settings_of_run(run)}
    assert meanings["optimizer.kind"].startswith("Steps by the sign of an averaged gradient")
    assert meanings["optimizer.gradient_clipping"].endswith("scaled down; 0 for no limit")
    assert "as many as `heads`" in meanings["model.kv_heads"]
    assert "as many as <code>heads</code>" in render_page([run])


def test_final_values_are_of_the_last_reports(tmp_path):
    values = final_values(read_run(run_directory(tmp_path / "run")))
    assert values["steps"] == "200 of 200"
    assert values["training loss, nats/token"] == "2.350"  # the mean of the last two
    assert values["validation, nats/token"] == "2.4283 ± 0.0100 (upper bound)"
    assert values["loss where 40-60 % are masked"] == "2.750"
    assert values["tokens/s"] == "1,195"


def test_numbers_of_runs_have_the_same_digits_and_gaps_a_dash(tmp_path):
    def memory(gib):
        return lambda writer: writer.scalars(200, {"memory_gib": gib})

    directories = [run_directory(tmp_path / "a", memory(0.48)), run_directory(tmp_path / "b", memory(0.51578))]
    directories.append(run_directory(tmp_path / "c"))
    page = render_page([read_run(directory) for directory in directories])
    row = page.partition("memory of the first process, GiB")[2].partition("</tr>")[0]
    assert re.findall("<td>(.*?)</td>", row) == ["0.480", "0.516", "\N{EN DASH}"]


def test_what_is_not_there_is_not_named(tmp_path):
    def waiting(writer):
        writer.scalars(200, {"data_wait_fraction": 0.1})

    def both(writer):
        writer.scalars(200, {"data_wait_fraction": 0.1, "mfu": 0.4})

    without, with_mfu = (
        render_page([read_run(run_directory(tmp_path / more.__name__, more))]) for more in (waiting, both)
    )
    assert "MFU" not in without
    assert "training losses and tokens/s over the last tenth" in without
    assert "training losses, tokens/s and MFU over the last tenth" in with_mfu
    for page, charts in ((without, 0), (with_mfu, 1)):
        assert page.count("<figcaption>Share of the time spent waiting for data") == 1
        assert page.count("<figcaption>Model FLOPs utilisation (MFU)") == charts


def test_names_break_at_underscores_alone(tmp_path, opened):
    directory = run_directory(tmp_path / "run")
    assert main(["--run", str(directory)]) == 0
    page = watch(opened, f"file://{directory / 'report.html'}", width=500).page
    value = page.locator("tr", has_text="objective.kind").locator("td").nth(1).locator("code")
    lines = value.evaluate("""element => {
        const letters = [...element.childNodes].filter(node => node.nodeType == Node.TEXT_NODE).flatMap(node =>
            [...node.data].map((letter, place) => {
                const range = document.createRange();
                range.setStart(node, place); range.setEnd(node, place + 1);
                return [Math.round(range.getBoundingClientRect().top), letter];
            }));
        return [...new Set(letters.map(([top]) => top))].map(
            line => letters.filter(([top]) => top == line).map(([, letter]) => letter).join(""));
    }""")
    assert lines == ["non_", "autoregressive"]
    assert value.inner_text().replace("\n", "") == "non_autoregressive"


def test_many_checkpoints_in_a_row_are_folded(tmp_path):
    def more(writer):
        for step in range(10):
            writer.event(step, "checkpoint", f"number {step}")
        writer.event(10, "stopped", "")

    rows = rows_of_events(read_run(run_directory(tmp_path / "run", more)).events)
    assert [row[1:] for row in rows] == [
        ("0", "checkpoint", "number 0"),
        ("...", "8 more alike", ""),
        ("9", "checkpoint", "number 9"),
        ("10", "stopped", ""),
    ]


def test_a_page_needs_no_library_for_pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--run", str(run_directory(tmp_path / "run"))]) == 0
