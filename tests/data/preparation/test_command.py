"""launcher/prepare.py: its flags, errors and reports."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from nar_scale.commands import prepare as launcher
from nar_scale.commands.prepare import jobs
from tests.data.corpora import tree
from tests.data.preparation.preparing import made
from tests.data.shard_files import write_samples
from tests.errors import assert_names

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _named(monkeypatch):
    """As what the command is started, which its usage begins with."""
    monkeypatch.setattr(sys, "argv", ["prepare"])


# The command


def test_launcher(corpus, tmp_path, capsys):
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "data"), "--seq-len", "64", "--validation", "0.3"]
    assert launcher.main(arguments) == 0
    printed = capsys.readouterr()
    assert re.search(r"^train: \d+ documents, \d+ samples, [\d,]+ tokens, 1 shard$", printed.out, re.M)
    for kind, name in (("hidden", ".hidden.txt"), ("binary", "binary.txt"), ("empty", "empty.txt")):
        assert f"1 {kind} (such as {corpus}/{name})" in printed.out
    assert re.search(rf"^wrote {tmp_path}/data: 0\.0 MB of text in [\d.]+ s, [\d.]+ MB/s$", printed.out, re.M)
    assert printed.err == ""
    assert launcher.main(arguments) == 0
    assert f"{tmp_path}/data holds the data set of these inputs and settings already" in capsys.readouterr().out
    assert launcher.main([*arguments, "--document-ids"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("prepare: error: ")
    assert printed.err.count("\n") == 1
    assert launcher.main([*arguments, "--overwrite"]) == 0


def test_every_flag_reaches_its_setting(corpus, tmp_path):
    flags = "--seq-len 32 --one-document-per-sample --document-ids --validation 0.4 --include *.txt --exclude sub"
    flags += " --samples-per-shard 5 --unit-bytes 1000 --workers 1"
    assert launcher.main(["--input", str(corpus), "--output", str(tmp_path / "flags"), *flags.split()]) == 0
    made(
        corpus,
        tmp_path / "settings",
        seq_len=32,
        packed=False,
        document_ids=True,
        validation=0.4,
        include="*.txt",
        exclude=["sub"],
        samples_per_shard=5,
        unit_bytes=1000,
    )
    assert tree(tmp_path / "flags") == tree(tmp_path / "settings")


def test_parts_and_merge_by_command(corpus, tmp_path, capsys):
    arguments = ["--input", str(corpus), "--output", str(tmp_path / "data"), "--seq-len", "64", "--unit-bytes", "2000"]
    arguments += ["--validation", "0", "--workers", "1"]
    assert launcher.main([*arguments, "--part", "2/2"]) == 0
    assert re.search(r"^part 2/2: (\d+) of \d+ work items done in .*data$", capsys.readouterr().out)
    assert launcher.main([*arguments, "--merge"]) == 2
    error = capsys.readouterr().err.rstrip("\n")
    assert_names(error, "prepare: error: ", tmp_path / "data", "(1, 3, ", "--merge")
    assert launcher.main([*arguments, "--part", "1/2"]) == 0
    assert launcher.main([*arguments, "--merge"]) == 0
    assert "train: 65 documents" in capsys.readouterr().out
    made(corpus, tmp_path / "fresh", unit_bytes=2000)
    assert tree(tmp_path / "data") == tree(tmp_path / "fresh")
    for flag in (["--merge"], ["--part", "1/2"]):
        assert launcher.main([*arguments, *flag]) == 0
        assert launcher.main([*arguments, *flag, "--document-ids"]) == 2
        assert_names(capsys.readouterr().err.rstrip("\n"), tmp_path / "data", "--overwrite")


@pytest.fixture
def damaged(tmp_path):
    """Inputs that cannot be used, each in its own way."""
    root = tmp_path / "damaged"
    root.mkdir()
    (root / "bad.jsonl").write_text('{"text": "one"}\n{"text": "two"\n')
    (root / "nokey.jsonl").write_text('{"body": "one"}\n')
    (root / "cut.txt.gz").write_bytes(gzip.compress(os.urandom(4000))[:-100])
    (root / "bad.parquet").write_bytes(b"PAR1 no")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), root / "nocolumn.parquet")
    (root / "bad.tar").write_bytes(b"x" * 2000)
    (root / "bad.npy").write_bytes(b"x" * 2000)
    np.save(root / "floats.npy", np.zeros((2, 3)))
    np.save(root / "tokens.npy", np.full((2, 3), 99))
    np.savez(root / "labels.npz", x=np.zeros((2, 3), dtype=int), y=np.zeros(2, dtype=int))
    (root / "good.txt").write_text("good")
    (root / "tokenizer.json").write_text("{}")
    return root


# what the one line about a wrong command names; None where the parser tells it
ERRORS = {
    "--input {0}/nowhere": ["{0}/nowhere"],
    "--input {0}/good.txt --include": None,
    "--input {0} --include *.nothing": ["{0}", "include"],
    "--input {0}/bad.jsonl": ["{0}/bad.jsonl", 16],
    "--input {0}/bad.jsonl {0}/good.txt --workers 2 --unit-bytes 5": ["{0}/bad.jsonl", 16],
    "--input {0}/nokey.jsonl": ["{0}/nokey.jsonl", "'text'", "'body'"],
    "--input {0}/cut.txt.gz": ["{0}/cut.txt.gz"],
    "--input {0}/bad.parquet": ["{0}/bad.parquet"],
    "--input {0}/nocolumn.parquet": ["{0}/nocolumn.parquet", "'text'", "'body'"],
    "--input {0}/bad.tar": ["{0}/bad.tar"],
    "--input {0}/bad.npy --vocabulary-size 9": ["{0}/bad.npy"],
    "--input {0}/floats.npy --vocabulary-size 9": ["{0}/floats.npy", "float64"],
    "--input {0}/tokens.npy --vocabulary-size 9": ["{0}/tokens.npy", "token 99", 9],
    "--input {0}/tokens.npy": ["{0}/tokens.npy", "--vocabulary-size"],
    "--input {0}/labels.npz --vocabulary-size 9": ["{0}/labels.npz", "--one-document-per-sample"],
    "--input {0}/good.txt --vocabulary-size 9": ["{0}/good.txt", "tokenizer"],
    "--input {0}/good.txt --vocabulary-size 0": ["vocabulary_size", 0],
    "--input {0}/good.txt --vocabulary-size 9 --tokenizer byte": ["tokenizer", "vocabulary size"],
    "--input {0}/good.txt --tokenizer {0}/nowhere.json": ["{0}/nowhere.json"],
    "--input {0}/good.txt --tokenizer {0}/tokenizer.json": ["{0}/tokenizer.json"],
    "--input {0}/good.txt --tokenizer {0}/new.json --train-tokenizer 256": [256, 257],
    "--input {0}/good.txt --train-tokenizer 300": None,
    "--input {0}/good.txt --part 3/2": ["3/2"],
    "--input {0}/good.txt --part 0/2": ["0/2"],
    "--input {0}/good.txt --part x": None,
    "--input {0}/good.txt --part 1": None,
    "--input {0}/good.txt --part 1/2 --merge": None,
    "--input {0}/good.txt --merge": ["1 of 1 ", "--merge"],
    "--input {0}/good.txt --validation 1.5": ["validation", 1.5],
    "--input {0}/good.txt --validation x": None,
    "--input {0}/good.txt --workers 0": ["workers", 0],
    "--input {0}/good.txt --output {0}/good.txt": ["{0}/good.txt", "Not a directory"],
    "--input {0}/good.txt --output {0}/good.txt --overwrite": ["{0}/good.txt", "Not a directory"],
    "--input {0}/good.txt --seq-len 1": ["seq_len", 1],
    "--input {0}/good.txt --inspect {0}": None,
    "--inspect {0}/nowhere": ["{0}/nowhere"],
    "--verify {0}/nowhere": ["{0}/nowhere"],
    "--verify https://host/web": ["https://host/web"],
    "--index {0}/bad.tar": ["{0}/bad.tar", "byte 0"],
    "--index {0}/cut.txt.gz": ["{0}/cut.txt.gz", "data.sequential"],
    "--index {0}/good.txt": ["{0}/good.txt"],
    "--index {0}/nowhere": ["{0}/nowhere"],
    "--index {0}/d*": ["{0}/d*"],
    "--index {0} --workers 0": ["workers", 0],
    "--index {0} --output {0}/out": None,
    "--inspect {0} --overwrite": None,
    "--inspect {0} --cache-directory {0} --cache-gib nan": ["nan GiB", "--cache-gib"],
    "--index {0} --cache-directory {0} --cache-gib inf": ["inf GiB", "--cache-gib"],
    "--index {0} --cache-directory {0} --cache-gib 0": ["0.0 GiB", "--cache-gib"],
    "--index {0} --cache-directory {0} --cache-gib -1": ["-1.0 GiB", "--cache-gib"],
    "": None,
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_wrong_command_is_one_line_and_status_2(damaged, tmp_path, capsys, line):
    arguments = line.format(damaged).split()
    if "--input" in arguments:
        arguments = [
            "--seq-len",
            "8",
            "--validation",
            "0",
            "--workers",
            "1",
            "--output",
            f"{tmp_path}/data",
            *arguments,
        ]
    before = tree(tmp_path)
    if ERRORS[line] is None:  # which the parser tells
        with pytest.raises(SystemExit) as ended:
            launcher.main(arguments)
        status = ended.value.code
    else:
        status = launcher.main(arguments)
    printed = capsys.readouterr()
    (message,) = printed.err.splitlines()
    assert status == 2
    assert printed.out == ""
    assert message.startswith("prepare: error: ")
    assert_names(message, *(n.format(damaged) if isinstance(n, str) else n for n in ERRORS[line] or ()))
    assert {name: digest for name, digest in tree(tmp_path).items() if "/.prepare-" not in name} == before


def test_damaged_shards_do_not_keep_others_from_their_indices(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "x.tar"  # a folder, whatever its name
    folder.mkdir()
    for number in range(3):
        write_samples(folder / f"{number}.tar", [np.arange(4)] * 3)
    for number in (0, 1):
        os.truncate(folder / f"{number}.tar", 2000)
    monkeypatch.setattr("nar_scale.data.shards.dataset_index.available_cores", None)  # all cores are not asked for
    assert launcher.main(["--index", str(folder), "", str(folder / "2.tar"), "--workers", "1"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"{folder}: 5 samples in 3 shards, 2 damaged",
        f"{folder}/2.tar: 3 samples in 1 shard, all indexed",
    ]
    assert [line.partition(" is ")[0] for line in said.err.splitlines()] == [
        f"prepare: error: shard {folder}/0.tar",
        f"prepare: error: shard {folder}/1.tar",
        "prepare: error: the name of a folder",
    ]
    assert (folder / "2.tar.index").exists()
    monkeypatch.setattr(jobs, "MAX_FAULTS", 1)
    assert launcher.main(["--index", str(folder), "--workers", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[1:][0].startswith("prepare: error: 1 more ")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, capfd, monkeypatch):
    write_samples(tmp_path / "a.tar", [np.arange(4)] * 3)
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert launcher.main(["--inspect", str(tmp_path)]) == 0
    assert capfd.readouterr().err == ""


def test_a_wrong_command_has_no_traceback(damaged, tmp_path):
    command = [sys.executable, ROOT / "launcher" / "prepare.py", "--input", damaged / "bad.jsonl", damaged / "good.txt"]
    command += ["--output", tmp_path / "data", "--seq-len", "8", "--workers", "2", "--unit-bytes", "9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"prepare: error: input .*bad\.jsonl, line at byte 16: not valid JSON .*\n", done.stderr)


# The subcommands


def test_subcommands_do_what_the_flags_do(corpus, tmp_path, capsys):
    given = {"--text-field": "body", "--include": "*.txt", "--seq-len": "32", "--validation": "0.4", "--workers": "1"}
    options = ["--document-ids", *(word for pair in given.items() for word in pair)]
    assert launcher.main(["corpus", str(corpus), "--output", str(tmp_path / "made"), *options]) == 0
    assert launcher.main(["--input", str(corpus), "--output", str(tmp_path / "flags"), *options]) == 0
    assert tree(tmp_path / "made") == tree(tmp_path / "flags")
    capsys.readouterr()
    for job in ("inspect", "verify", "index"):
        printed = []
        for form in ([job], [f"--{job}"]):
            assert launcher.main([*form, str(tmp_path / "made")]) == 0
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]
        assert printed[0]
    for name, form in (
        ("sub.json", ["tokenizer", str(corpus), "--vocabulary-size", "300", "--output"]),
        ("flags.json", ["--input", str(corpus), "--train-tokenizer", "300", "--tokenizer"]),
    ):
        assert launcher.main([*form, str(tmp_path / name)]) == 0
        assert capsys.readouterr().out.count(str(tmp_path / name)) == 2
    assert (tmp_path / "sub.json").read_bytes() == (tmp_path / "flags.json").read_bytes()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("corpsu x", ["corpsu", "corpus"]),
        ("corpus missing.txt --seq-len 8", ["missing.txt", "--output"]),
        ("corpus missing.txt --output y", ["missing.txt", "--seq-len"]),
        ("corpus . missing.txt", ["missing.txt", "--output", "--seq-len"]),
        ("--input missing.txt", ["missing.txt", "--output", "--seq-len"]),
        ("--input missing.txt --output y", ["missing.txt", "--seq-len"]),
        ("--digits", ["--output"]),
        ("corpus x --output y --seq-len 8 --part 1/2 --merge", ["--merge"]),
        ("corpus x --output y --seq-len 8 --validation 0.1 --validation-input z", ["--validation-input"]),
        ("corpus x --output y --seq-len 8 --train-tokenizer 300", ["--tokenizer"]),
        ("tokenizer x --output y", ["--vocabulary-size"]),
        ("digits", ["--output"]),
        ("verify", ["DIR"]),
    ],
)
def test_a_subcommand_says_what_it_lacks(capsys, line, named):
    with pytest.raises(SystemExit) as ended:
        launcher.main(line.split())
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("prepare: error: ")
    assert_names(message.rstrip("\n"), *named)
