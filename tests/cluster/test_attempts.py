import os

from nar_scale.cluster.attempts import (
    ATTEMPTS_FILE,
    NOBODY_LEFT,
    Attempt,
    newest_step,
    read_attempts,
    record,
    tell_attempts,
    without_new_step,
)
from tests.errors import assert_names


def test_a_line_at_the_start_and_one_at_the_end(tmp_path):
    run = tmp_path / "runs" / "one"
    assert read_attempts(run) == []
    first = Attempt("7", 0, "n[1-2]", 100.0, 0)
    record(run, first)
    assert read_attempts(run) == [first]
    ended = first.ended(12, "lost n2")
    record(run, ended)
    second = Attempt("7", 1, "n[1,3]", 200.0, 12)
    record(run, second)
    assert read_attempts(run) == [ended, second]
    assert ended.end > 0
    assert (ended.step, ended.why) == (12, "lost n2")
    assert len((run / ATTEMPTS_FILE).read_bytes().splitlines()) == 3
    assert "lost n2" in str(ended)
    assert "steps 12 to ?" in str(second)


def test_the_attempt_that_goes_on_is_not_said_to_have_ended():
    earlier, now = Attempt("7", 0, "n1", 100.0, 0), Attempt("7", 1, "n2", 200.0, 12)
    first, second = tell_attempts([earlier, now], {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}).split("\n\n")
    assert_names(first, "attempt 0 on n1", NOBODY_LEFT)
    assert_names(second, "attempt 1 on n2, steps 12 to ?: goes on")
    assert_names(tell_attempts([now], {}), NOBODY_LEFT)


def test_damaged_lines_are_left_out(tmp_path):
    first, second = Attempt("7", 0, "n1", 1.0, 0), Attempt("7", 1, "n1", 2.0, 0)
    record(tmp_path, first)
    with open(tmp_path / ATTEMPTS_FILE, "ab") as file:
        file.write(b'[]\n{"job": "9"}\n{"job": "7", "att')
    record(tmp_path, second)
    assert read_attempts(tmp_path) == [first, second]


def attempt(job, start, step, submitted=None, end=None):
    return Attempt(job, 0, "n1", start, step, end, submitted=submitted)


def test_attempts_without_a_new_step_are_those_in_a_row():
    attempts = [attempt("7", start, step) for start, step in enumerate((0, 4, 4, 4))]
    assert without_new_step(attempts, "7", 4) == 3
    assert without_new_step(attempts, "7", 8) == 0
    assert without_new_step(attempts, "8", 4) == 0
    assert without_new_step([], "7", 0) == 0


def test_the_links_of_a_chain_are_counted_together():
    chain = [attempt(job, start, 4, 10.0) for job, start in (("7", 20.0), ("8", 30.0), ("9", 40.0))]
    assert without_new_step(chain, "9", 4) == 3
    assert without_new_step([attempt("6", 11.0, 0, 1.0), *chain], "9", 4) == 3
    # a link may have started before the next one was submitted
    assert without_new_step([attempt("6", 5.0, 4, 1.0, end=11.0), *chain], "9", 4) == 4
    assert without_new_step([attempt("6", 5.0, 4, 1.0, end=9.0), *chain], "9", 4) == 3


def test_whoever_submits_anew_is_given_as_many_attempts_again():
    before = [attempt("7", start, 4, 10.0) for start in (20.0, 30.0, 40.0)]
    first = attempt("8", 60.0, 4, 50.0)
    assert without_new_step([*before, first], "8", 4) == 1
    # SLURM takes a requeue for another submission
    assert without_new_step([*before, first, attempt("8", 80.0, 4, 70.0)], "8", 4) == 2
    assert without_new_step([*before, first, attempt("7", 75.0, 4), attempt("8", 80.0, 4, 70.0)], "8", 4) == 3


def test_the_newest_step_is_that_of_the_pointer(tmp_path):
    assert newest_step(tmp_path) == 0
    os.mkdir(tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "latest").write_text("step-000000012\n")
    assert newest_step(tmp_path) == 12
    (tmp_path / "checkpoints" / "latest").write_bytes(b"\xff\xfe")
    assert newest_step(tmp_path) == 0
