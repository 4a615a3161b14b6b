import socket

from nar_scale.cluster.endings import ATTEMPT_DIRECTORY_VARIABLE, Ending, Kind, read_endings, report


def test_the_last_report_of_each_rank_counts(tmp_path):
    for rank, kind, why in [(10, Kind.RUNNING, ""), (2, Kind.RUNNING, ""), (2, Kind.HANG, "nothing has moved")]:
        report(kind, why, {ATTEMPT_DIRECTORY_VARIABLE: str(tmp_path), "RANK": str(rank)})
    host = socket.gethostname()
    expected = [Ending(2, host, Kind.HANG, "nothing has moved"), Ending(10, host, Kind.RUNNING)]
    assert read_endings(tmp_path) == expected
    assert str(expected[0]) == f"rank 2 on {host}: nothing has moved"
    assert str(expected[1]) == f"rank 10 on {host}: running"


def test_srun_numbers_the_ranks_that_nobody_else_has(tmp_path):
    report(Kind.COMPLETE, "", {ATTEMPT_DIRECTORY_VARIABLE: str(tmp_path), "SLURM_PROCID": "3"})
    assert [ending.rank for ending in read_endings(tmp_path)] == [3]


def test_without_a_supervisor_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report(Kind.COMPLETE, "", {"RANK": "0"})
    report(Kind.COMPLETE, "", {ATTEMPT_DIRECTORY_VARIABLE: str(tmp_path)})
    report(Kind.COMPLETE, "", {ATTEMPT_DIRECTORY_VARIABLE: str(tmp_path / "gone"), "RANK": "0"})
    (tmp_path / "rank-1.json").write_text("{")
    assert read_endings(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-1.json"]
