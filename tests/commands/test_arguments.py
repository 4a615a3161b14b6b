"""Wrong arguments are answered in one line, which names the nearest one that exists."""

import re
import sys

import pytest

from nar_scale.commands import console, evaluate, generate, train
from nar_scale.commands.prepare import main as prepare
from nar_scale.commands.process import exit_status


def answer(capsys, main, *arguments):
    """The line that a command answers wrong arguments with."""
    sys.argv = ["nar-scale", *arguments]
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.parametrize(
    ("main", "arguments", "wrong", "nearest"),
    [
        (console.main, ["generat"], "'generat'", "generate"),
        (generate.main, ["--checkpiont", "exported/my"], "--checkpiont", "--checkpoint"),
        (generate.main, ["--checkpoint", "exported/my", "--num-sample=3", "--wach"], "--wach", "--watch"),
        (generate.main, ["--checkpoint", "exported/my", "--sampler", "confidnce"], "'confidnce'", "confidence"),
        (evaluate.main, ["--checkpoint", "a", "--date", "data/my"], "--date", "--data"),
        (prepare, ["corpus", "text.txt", "--outptu", "data/my"], "--outptu", "--output"),
        (prepare, ["inspct", "data/my"], "'inspct'", "inspect"),
    ],
)
def test_the_nearest_is_named(capsys, monkeypatch, main, arguments, wrong, nearest):
    monkeypatch.setattr(sys, "argv", [])
    told = answer(capsys, main, *arguments)
    assert wrong in told
    assert re.search(rf"did you mean {nearest}\?", told)


def test_what_is_like_nothing_gets_no_suggestion(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    assert "did you mean" not in answer(capsys, generate.main, "--checkpoint", "a", "--xyz")


def test_a_mistyped_option_is_named_rather_than_the_one_that_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    assert exit_status(lambda: train.main(["--confg", "my.yaml"]), ranks=True) == 2
    told = capsys.readouterr().err
    assert "--confg" in told
    assert "did you mean --config?" in told
    assert "required" not in told


def test_what_a_launcher_gives_is_not_taken_for_a_mistyped_option(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    assert exit_status(lambda: train.main(["--local_rank=1"]), ranks=True) == 2
    told = capsys.readouterr().err
    assert "required: --config" in told
    assert "--local_rank" not in told


def test_wrong_settings_start_no_processes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setattr(train, "run_ranks", lambda options: pytest.fail("processes were started"))
    arguments = ["--ranks", "2", "--config", "configs/quickstart_nar.yaml", "model.dim=0"]
    assert exit_status(lambda: train.main(arguments), ranks=True) == 2
    assert "model.dim" in capsys.readouterr().err


def test_the_sections_are_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as ended:
        train.main(["--explain"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"model", "objective", "decoding", "faults"} <= {line.partition(" ")[0] for line in lines}
