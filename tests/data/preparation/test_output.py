"""The directory of a data set: what is there already, what cannot be written, what is shown meanwhile."""

import errno
import fcntl
import hashlib
import io
import os
import re
import resource
import signal
import struct
import sys
import termios
from pathlib import Path

import pytest

from nar_scale.data import DatasetInfo, load_tokenizer, plan_dataset
from nar_scale.errors import DataError, UserError
from tests.data.corpora import tree
from tests.data.preparation.preparing import decoded, files, made, write_tokenizer
from tests.errors import refused

# The output


def test_existing_data_is_replaced_only_when_asked(corpus, tmp_path):
    output = tmp_path / "data"
    made(corpus, output, seq_len=32, validation=0.3, samples_per_shard=10)
    before = tree(output)
    with refused(UserError, output, "--overwrite"):
        made(corpus, output)
    with refused(DataError, tmp_path / "nowhere"):
        made(tmp_path / "nowhere", output, overwrite=True)
    assert tree(output) == before
    (output / "notes.txt").write_text("mine")
    made(corpus, output, overwrite=True)
    made(corpus, tmp_path / "fresh")
    assert tree(output) == {**tree(tmp_path / "fresh"), "notes.txt": hashlib.sha256(b"mine").hexdigest()}
    assert len(list((output / "train").iterdir())) == len(list((tmp_path / "fresh" / "train").iterdir()))


def test_shards_without_dataset_json_are_not_mixed_in(corpus, tmp_path):
    output = tmp_path / "data"
    made(corpus, output)
    (output / "dataset.json").unlink()
    with refused(UserError, output, "dataset.json", "--overwrite"):
        made(corpus, output)
    made(corpus, output, overwrite=True)
    made(corpus, tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")


def test_the_remains_of_runs_with_other_settings_are_cleared(corpus, tmp_path):
    output = tmp_path / "data"
    for remains in (".prepare", ".prepare-1234/unit-000000/train", ".prepare-5678.done/unit-000000"):
        (output / remains).mkdir(parents=True)
    (output / ".prepare-1234" / "publishing").touch()
    (output / ".dataset.json.0123456789abcdef0123456789abcdef").write_text("{")
    (output / ".prepare").rmdir()
    made(corpus, output)
    made(corpus, tmp_path / "fresh")
    assert tree(output) == tree(tmp_path / "fresh")
    assert files(output) == ["dataset.json", "train"]


def test_a_data_set_is_made_again_where_a_killed_run_could_not_clear_all_of_its_own(corpus, tmp_path):
    output = tmp_path / "data"
    name = f".prepare-{plan_dataset([corpus], output, seq_len=64, validation=0).fingerprint}.done"
    made(corpus, output)
    before = tree(output)
    (output / name / "unit-000000").mkdir(parents=True)
    made(corpus, output, overwrite=True)
    assert tree(output) == before
    assert not (output / name).exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seq_len": 1}, ("seq_len", 1, 2)),
        ({"validation": 1.0}, ("validation", 1.0)),
        ({"validation": -0.1}, ("validation", -0.1)),
        ({"validation": float("nan")}, ("validation", "nan")),
        ({"samples_per_shard": 0}, ("samples_per_shard", 0)),
        ({"unit_bytes": 0}, ("unit_bytes", 0)),
        ({"workers": 0}, ("workers", 0)),
        ({"tokenizer": None}, ("tokenizer", "vocabulary size")),
        ({"vocabulary_size": 300}, ("tokenizer", "vocabulary size")),
        ({"tokenizer": None, "vocabulary_size": 0}, ("vocabulary_size", 0, 1)),
        ({"tokenizer": None, "vocabulary_size": -5}, ("vocabulary_size", -5, 1)),
        ({"include": "*.nothing"}, ("/corpus", "include")),
        ({"include": "empty.txt"}, ("empty",)),
        ({"validation": 1e-9, "packed": False}, (65, "validation", 1e-9)),
        ({"validation": 1 - 1e-9}, (65, "--validation")),
    ],
)
def test_wrong_arguments_are_named(corpus, tmp_path, settings, named):
    with refused(UserError, *named):
        made(corpus, tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


def test_unwritable_output_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "data", tmp_path / "file"):
        with refused(DataError, output, os.strerror(errno.ENOTDIR)):
            made(corpus, output)


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(corpus, tmp_path, monkeypatch):
    fsync, left = os.fsync, 9

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with refused(DataError, tmp_path / "data", os.strerror(errno.ENOSPC)):
            made(corpus, tmp_path / "data", unit_bytes=2000)
    assert list((tmp_path / "data").glob(".prepare-*/unit-*"))
    made(corpus, tmp_path / "data", unit_bytes=2000)
    made(corpus, tmp_path / "fresh", unit_bytes=2000)
    assert tree(tmp_path / "data") == tree(tmp_path / "fresh")


def test_missing_or_damaged_dataset_json_is_named(tmp_path):
    with refused(DataError, tmp_path / "dataset.json", os.strerror(errno.ENOENT), "nar-scale prepare"):
        DatasetInfo.load(tmp_path)
    for content in ("{", "[]", '{"splits": {}}', '{"splits": {"train": {"rows": 3}}}'):
        (tmp_path / "dataset.json").write_text(content)
        with refused(DataError, tmp_path / "dataset.json"):
            DatasetInfo.load(tmp_path)


def test_the_tokenizer_of_a_data_set_that_is_replaced_survives_a_kill(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("abc")
    made(tmp_path / "a.txt", tmp_path / "data", tokenizer=write_tokenizer(tmp_path / "t.json"))
    own = str(tmp_path / "data" / "tokenizer.json")

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("nar_scale.data.preparation.publish._move", killed)
        with pytest.raises(Killed):
            made(tmp_path / "a.txt", tmp_path / "data", tokenizer=own, seq_len=4, overwrite=True)
    made(tmp_path / "a.txt", tmp_path / "data", tokenizer=own, seq_len=4, overwrite=True)
    assert decoded(tmp_path / "data") == "abc\n<|end|>\n"


def test_a_tokenizer_that_is_saved_over_itself_survives_a_kill(tmp_path):
    path = Path(write_tokenizer(tmp_path / "tokenizer.json"))
    before = path.read_bytes()
    process = os.fork()
    if process == 0:
        try:
            tokenizer = load_tokenizer(path)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # dies in the middle of writing
            tokenizer.save(tmp_path)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGXFSZ
    assert path.read_bytes() == before
    (tmp_path / "a.txt").write_text("abc")
    made(tmp_path / "a.txt", tmp_path, tokenizer=str(path))
    assert files(tmp_path) == ["a.txt", "dataset.json", "tokenizer.json", "train"]


def test_a_terminal_sees_throughput_and_time_left(corpus, tmp_path, monkeypatch):
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with open(end, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        made(corpus, tmp_path / "data", unit_bytes=2000, progress=True)
        made(corpus, tmp_path / "silent", progress=False)
        stream.flush()
        shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert re.findall(r"prepare: 100%\|█+\| ([\d.]+k)/\1 \[00:\d\d<00:00, [\d.]+[kM]?B/s\]", shown)
    assert shown.count("\n") == 1  # one bar: the second call shows none


def test_a_file_that_is_no_terminal_sees_nothing(corpus, tmp_path, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    made(corpus, tmp_path / "data", progress=True)
    assert stream.getvalue() == ""
