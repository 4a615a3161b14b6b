"""The measurement of what a setting learns of one text file."""

import random
import sys

import pytest

from benchmarks import learning


@pytest.mark.parametrize("settings", [[], ["objective.loss=unweighted"], ["objective.kind=autoregressive"]])
def test_a_text_is_learned_and_judged_once_for_each_seed(settings, tmp_path, capsys, monkeypatch):
    letters = random.Random(0).choices("abc\n", k=3000)
    (tmp_path / "text.txt").write_text("".join(letters))
    arguments = [tmp_path / "text.txt", "--seeds", "2", "training.steps=2", "model.dim=16", "model.depth=1", *settings]
    monkeypatch.setattr(sys, "argv", ["learning.py", *map(str, arguments)])
    learning.main()
    lines = capsys.readouterr().out.splitlines()
    kind = "exact" if "objective.kind=autoregressive" in settings else "bound"
    nats = [float(line.split(": ")[1].split()[0]) for line in lines]
    assert [line.split(":")[0] for line in lines] == ["seed 0", "seed 1"]
    assert all(f"({kind})" in line for line in lines)
    assert all(1.3 < value < 1.7 for value in nats)  # four equally probable characters: ln 4 = 1.386 at best
    assert nats[0] != nats[1]
