"""What is told of the work from outside."""

import pytest

from nar_scale.commands.generate import main as command
from nar_scale.errors import UserError
from nar_scale.fleet import Layout, read_status
from nar_scale.fleet.journal import Journal
from tests.errors import refused
from tests.fleet.helpers import Breaking, record, result, units, worker

LAYOUT = Layout(20, 4)


@pytest.fixture
def output(tmp_path):
    record(tmp_path / "out", LAYOUT)
    return tmp_path / "out"


def test_units_in_every_state(output, capsys):
    with pytest.raises(UserError):
        worker(output, LAYOUT, Breaking([4, 8, 12])).run()
    (output / LAYOUT.part_name(4)).unlink()
    running = units(output, LAYOUT, host="n7")
    claims = {}
    while len(claims) < 3:
        claim = running.claim()
        claims[claim.unit] = claim
    held = next(claim for unit, claim in claims.items() if unit in (1, 2, 3))
    Journal(running.directory, held).append({number: result(number) for number in list(LAYOUT.numbers(held.unit))[:3]})
    for claim in claims.values():
        if claim is not held:
            running.give_back(claim)
    status = read_status(output)
    assert status.done == [0]
    assert [(each.unit, each.holder.host, each.results) for each in status.running] == [(held.unit, "n7", 3)]
    assert not status.running[0].gone
    assert status.running[0].silent_seconds < 60
    assert set(status.waiting) | set(status.failed) == set(range(1, 5)) - {held.unit}
    assert all("the device is gone" in reason for reason in status.failed.values())
    assert status.results == 4 + 3
    assert status.rate > 0
    assert not status.complete
    assert command(["--status", str(output)]) == 1
    told = capsys.readouterr().out
    assert "7 of 20" in told
    assert "n7" in told


def test_finished_work_has_status_0(output, capsys):
    worker(output, LAYOUT).run()
    assert command(["--status", str(output)]) == 0
    assert "20 of 20" in capsys.readouterr().out


@pytest.mark.parametrize("layout", [LAYOUT, Layout(20, 4, "shards")], ids=["jsonl", "shards"])
def test_a_truncated_part_is_noticed(tmp_path, layout):
    record(tmp_path / "out", layout)
    worker(tmp_path / "out", layout).run()
    part = tmp_path / "out" / layout.part_name(3)
    whole = part.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        part.write_bytes(whole[:size])
        assert read_status(tmp_path / "out").truncated == [3]
        assert not read_status(tmp_path / "out").complete
    part.write_bytes(whole)
    assert read_status(tmp_path / "out").complete


def test_no_directory_of_results(tmp_path, capsys):
    with refused(UserError, tmp_path, "generation.json"):
        read_status(tmp_path)
    assert command(["--status", str(tmp_path / "nowhere")]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err
