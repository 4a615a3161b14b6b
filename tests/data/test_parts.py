"""The same data set, to the byte, whoever does which part of the work, however often, and whenever it is killed."""

import errno
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import webdataset

from nar_scale.data import DatasetInfo, merge_units, plan_dataset, prepare, prepare_units
from nar_scale.data.storage.locks import locked
from nar_scale.errors import DataError, UserError

from .corpora import check_whole, count_documents, read_split, tree, write_corpus
from .killing import killed_before

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "launcher" / "prepare.py"
SETTINGS = {"seq_len": 64, "validation": 0.3, "samples_per_shard": 16, "unit_bytes": 2000}
FLAGS = ("--seq-len", "64", "--validation", "0.3", "--samples-per-shard", "16", "--unit-bytes", "2000")

# The launcher, loaded once; each line of arguments is then run in a process group of its own.
LAUNCHERS = f"""\
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("prepare_launcher", {str(LAUNCHER)!r})
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        log = os.open(os.environ["LOG"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = launcher.main(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    os.setpgid(process, process)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts") / "corpus"
    write_corpus(root)
    return root


@pytest.fixture(scope="module")
def unbroken(corpus):
    """The data set as one process makes it in one go."""
    output = corpus.parent / "unbroken"
    prepare([corpus], output, **SETTINGS, workers=1, progress=False)
    return output


def plan(corpus, output, **changes):
    return plan_dataset([corpus], output, **{**SETTINGS, "workers": 1, **changes})


def files(output):
    return sorted(path.name for path in output.iterdir())


def check_equal(output, unbroken):
    assert tree(output) == tree(unbroken)
    assert files(output) == ["dataset.json", "train", "validation"]
    check_whole(output)  # and the indices fit


# Parts


def test_the_corpus_has_many_units_and_shards(corpus, unbroken):
    units = plan(corpus, corpus.parent / "nowhere").units
    assert len(units) > 9
    assert max(unit.size for unit in units) > 2 * SETTINGS["unit_bytes"]
    assert [piece.file.name for unit in units for piece in unit.pieces].count("lines.jsonl") > 2
    assert DatasetInfo.load(unbroken).splits["train"].shards > len(units)


def test_validation_samples_of_the_units_stand_together_in_shards_of_the_normal_size(corpus, unbroken, tmp_path):
    output = tmp_path / "data"
    work = plan(corpus, output)
    prepare_units(work, output, workers=1, progress=False)
    small = sorted(output.glob(".prepare-*/unit-*/validation/*.tar"))
    samples = [sample for shard in small for sample in webdataset.WebDataset(str(shard), shardshuffle=False)]
    merge_units(work, output, workers=1, progress=False)
    shards = sorted((output / "validation").glob("*.tar"))
    joined = [list(webdataset.WebDataset(str(shard), shardshuffle=False)) for shard in shards]
    most = SETTINGS["samples_per_shard"]
    assert [(one["__key__"], one["tokens.npy"]) for one in samples] == [
        (one["__key__"], one["tokens.npy"]) for shard in joined for one in shard
    ]
    assert max(map(len, joined)) <= most
    assert all(len(one) + len(other) > most for one, other in pairwise(joined))
    assert len(shards) == DatasetInfo.load(output).splits["validation"].shards < len(small)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_result_does_not_depend_on_the_number_of_workers(corpus, unbroken, tmp_path, workers):
    prepare([corpus], tmp_path / "data", **SETTINGS, workers=workers, progress=False)
    check_equal(tmp_path / "data", unbroken)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_the_result_does_not_depend_on_the_number_of_parts_nor_on_their_order(corpus, unbroken, tmp_path, parts):
    output = tmp_path / "data"
    order = [*range(1, parts + 1), *range(1, parts + 1, 2)]  # some twice
    random.Random(parts).shuffle(order)
    done = {}
    for number in order:
        done[number] = prepare_units(plan(corpus, output), output, (number, parts), workers=1, progress=False)
    assert sum(done.values()) == len(plan(corpus, output).units)
    assert not (output / "dataset.json").exists()
    assert merge_units(plan(corpus, output), output) == DatasetInfo.load(unbroken)
    check_equal(output, unbroken)


def do_part(corpus, output, part, barrier):
    work = plan(corpus, output)
    barrier.wait()
    prepare_units(work, output, part, workers=1, progress=False)


@pytest.mark.parametrize(
    "parts",
    [[(1, 1)] * 4, [(1, 3), (2, 3), (3, 3), (2, 3)], [(1, 2), (2, 2), (1, 1), (1, 1)], [(i, 40) for i in (1, 40)]],
)
def test_parts_are_done_by_several_processes_at_once(corpus, unbroken, tmp_path, parts):
    output = tmp_path / "data"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(parts))
    processes = [context.Process(target=do_part, args=(corpus, output, part, barrier)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(parts)
    prepare_units(plan(corpus, output), output, workers=1, progress=False)
    merge_units(plan(corpus, output), output)
    check_equal(output, unbroken)


def test_what_is_done_is_not_done_again(corpus, unbroken, tmp_path, monkeypatch):
    output = tmp_path / "data"
    prepare_units(plan(corpus, output), output, workers=1, progress=False)
    monkeypatch.setattr("nar_scale.data.preparation.work_item._pack", None)
    prepare([corpus], output, **SETTINGS, workers=1, progress=False)
    check_equal(output, unbroken)


# Merging


def test_missing_units_are_counted_and_named(corpus, tmp_path):
    output = tmp_path / "data"
    work = plan(corpus, output)
    units = len(work.units)
    with pytest.raises(
        DataError, match=rf"^{units} of {units} units are missing in .*data \(1, 2, 3, .*10, \.\.\.\); run"
    ):
        merge_units(work, output)
    for number in (1, 3):
        prepare_units(work, output, (number, 3), workers=1, progress=False)
    missing = [str(number + 1) for number in range(1, units, 3)]
    with pytest.raises(DataError) as error:
        merge_units(work, output)
    assert f"{len(missing)} of {units} units are missing in {output} ({', '.join(missing)}); run the parts" in str(
        error.value
    )
    assert not (output / "dataset.json").exists()
    assert not (output / "train").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_len": 65},
        {"validation": 0.31},
        {"samples_per_shard": 17},
        {"unit_bytes": 2001},
        {"packed": False},
        {"document_ids": True},
        {"text_field": "txt"},
        {"exclude": ["29.txt"]},
    ],
)
def test_parts_done_with_other_settings_do_not_count(corpus, unbroken, tmp_path, changes):
    output = tmp_path / "data"
    prepare_units(plan(corpus, output), output, workers=1, progress=False)
    if "text_field" in changes:  # the key of lines that are not there
        changes = {**changes, "include": "*.txt"}
    with pytest.raises(DataError, match="units are missing"):
        merge_units(plan(corpus, output, **changes), output)
    merge_units(plan(corpus, output), output)
    check_equal(output, unbroken)


def test_parts_done_of_other_inputs_do_not_count(tmp_path):
    corpus, output = tmp_path / "corpus", tmp_path / "data"
    write_corpus(corpus)
    prepare_units(plan(corpus, output), output, workers=1, progress=False)
    file = corpus / "00.txt"
    before = file.read_bytes(), file.stat().st_mtime_ns

    def refused():
        with pytest.raises(DataError, match="units are missing"):
            merge_units(plan(corpus, output), output)

    os.utime(file, ns=(before[1] + 1, before[1] + 1))
    refused()
    file.write_bytes(before[0] + b"!")
    os.utime(file, ns=(before[1], before[1]))
    refused()
    file.rename(corpus / "moved.txt")
    refused()
    (corpus / "moved.txt").rename(file)
    file.write_bytes(before[0])
    os.utime(file, ns=(before[1], before[1]))
    (corpus / "new.txt").write_text("new")
    refused()
    (corpus / "new.txt").unlink()
    merge_units(plan(corpus, output), output)
    check_whole(output)


def test_the_number_of_workers_is_no_setting(corpus, tmp_path):
    assert plan(corpus, tmp_path / "a", workers=2) == plan(corpus, tmp_path / "b", workers=1)


def test_merging_again(corpus, unbroken, tmp_path):
    output = tmp_path / "data"
    prepare([corpus], output, **SETTINGS, workers=1, progress=False)
    with pytest.raises(UserError, match="already holds a data set"):
        merge_units(plan(corpus, output), output)
    with pytest.raises(DataError, match="units are missing"):
        merge_units(plan(corpus, output), output, overwrite=True)
    check_equal(output, unbroken)
    prepare_units(plan(corpus, output), output, overwrite=True, workers=1, progress=False)
    merge_units(plan(corpus, output), output, overwrite=True)
    check_equal(output, unbroken)


def test_a_data_set_that_is_there_is_neither_replaced_nor_prepared_for_unless_asked(corpus, unbroken, tmp_path):
    output = tmp_path / "data"
    prepare([corpus], output, **{**SETTINGS, "seq_len": 128}, workers=1, progress=False)
    before = tree(output)
    for action in (prepare_units, merge_units):
        with pytest.raises(UserError, match=r"already holds a data set; .* --overwrite"):
            action(plan(corpus, output), output)
    assert tree(output) == before
    prepare_units(plan(corpus, output), output, workers=1, overwrite=True, progress=False)
    with pytest.raises(UserError, match=r"already holds a data set; .* --overwrite"):
        merge_units(plan(corpus, output), output)
    assert {name: tree(output)[name] for name in before} == before
    merge_units(plan(corpus, output), output, overwrite=True)
    check_equal(output, unbroken)


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0), (-1, -1)])
def test_parts_that_do_not_exist_are_refused(corpus, tmp_path, part):
    with pytest.raises(UserError, match=rf"part is {part[0]}/{part[1]}; give I/N with I from 1 to N"):
        prepare_units(plan(corpus, tmp_path / "data"), tmp_path / "data", part)
    assert not (tmp_path / "data").exists()


# Killed while merging: the process ends before one of its changes to the file system

CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir")


class Killed(BaseException):
    pass


@contextmanager
def killed_at(monkeypatch, change):
    """End the process, as far as it can tell, before its change number `change`."""
    count = 0

    def wrap(function):
        def change_once(*arguments, **options):
            nonlocal count
            count += 1
            if count >= change:
                raise Killed  # what cleans up is not run by SIGKILL
            return function(*arguments, **options)

        return change_once

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, wrap(getattr(os, name)))
        yield lambda: count


def write_files(directory, first):
    """Files of the same lengths whatever the letters are."""
    directory.mkdir()
    for number in range(5):
        (directory / f"{number}.txt").write_bytes(bytes([ord(first) + number]) * 600)
    return directory


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A smaller corpus: two units."""
    return write_files(tmp_path_factory.mktemp("merging") / "few", "A")


@pytest.fixture(scope="module")
def few_unbroken(few):
    output = few.parent / "unbroken"
    prepare([few], output, **SETTINGS, workers=1, progress=False)
    sizes = DatasetInfo.load(output).splits
    assert sizes["train"].shards > 2
    assert sizes["validation"].shards > 0
    return output


def tree_without_lock(output):
    """All there is; a merge killed as its very last change leaves its lock file, which is empty, to the next one."""
    return {name: digest for name, digest in tree(output).items() if name != ".merge.lock"}


def test_a_merge_killed_at_any_change_is_completed_by_doing_it_again(few, few_unbroken, tmp_path, monkeypatch):
    prepare_units(plan(few, tmp_path / "ready"), tmp_path / "ready", workers=1, progress=False)
    change, ended = 0, False
    while not ended:
        change += 1
        output = tmp_path / f"data{change}"
        shutil.copytree(tmp_path / "ready", output)
        with killed_at(monkeypatch, change):
            try:
                merge_units(plan(few, output), output)
                ended = True
            except Killed:
                pass
        check_whole(output)
        complete = (output / "dataset.json").exists()
        try:
            if change % 4 > 1:
                merge_units(plan(few, output), output)
            else:
                prepare([few], output, **SETTINGS, workers=1, progress=False)
        except UserError as error:
            assert complete
            if "already holds a data set" not in str(error):
                raise
        assert tree_without_lock(output) == tree(few_unbroken)
    assert change > 20


def test_replacing_killed_at_any_change_never_describes_other_shards(few, few_unbroken, tmp_path, monkeypatch):
    ready, old = tmp_path / "ready", {**SETTINGS, "seq_len": 32, "samples_per_shard": 12}
    prepare([few], ready, **old, workers=1, progress=False)
    old_tree = tree(ready)
    prepare_units(plan(few, ready), ready, workers=1, overwrite=True, progress=False)
    change, ended = 0, False
    while not ended:
        change += 1
        output = tmp_path / f"data{change}"
        shutil.copytree(ready, output)
        with killed_at(monkeypatch, change):
            try:
                merge_units(plan(few, output), output, overwrite=True)
                ended = True
            except Killed:
                pass
        check_whole(output)
        if not (output / "dataset.json").exists():
            for read in (DatasetInfo.load, partial(DatasetInfo.find, storage_options={})):
                with pytest.raises(DataError, match=r"is being put into place .*; run the same .* command again$"):
                    read(str(output))
        again, expected = (SETTINGS, tree(few_unbroken)) if change % 3 else (old, old_tree)
        prepare([few], output, **again, workers=1, overwrite=True, progress=False)
        assert tree(output) == expected
        assert files(output) == ["dataset.json", "train", "validation"]
        check_whole(output)
    assert change > 20


def merge_at_once(work, output, barrier, statuses):
    barrier.wait()
    try:
        merge_units(work, output, workers=1, progress=False)
        statuses.put("merged")
    except UserError as error:
        statuses.put(str(error))


def test_of_two_merges_at_once_one_succeeds(few, few_unbroken, tmp_path):
    work = plan(few, tmp_path / "data")
    prepare_units(work, tmp_path / "ready", workers=1, progress=False)
    context = multiprocessing.get_context("fork")
    for trial in range(10):
        output = tmp_path / f"data{trial}"
        shutil.copytree(tmp_path / "ready", output)
        barrier, statuses = context.Barrier(2), context.SimpleQueue()
        merges = [context.Process(target=merge_at_once, args=(work, output, barrier, statuses)) for _ in range(2)]
        for merge in merges:
            merge.start()
        said = sorted(statuses.get() for _ in merges)
        for merge in merges:
            merge.join()
        assert said[1] == "merged"
        assert said[0].startswith((f"another --merge is at work in {output}; wait", f"{output} already holds a data"))
        assert tree(output) == tree(few_unbroken)
        assert files(output) == files(few_unbroken)


def test_a_merge_waits_for_nobody_and_a_file_system_without_locks_is_merged_on(
    few, few_unbroken, tmp_path, monkeypatch
):
    output = tmp_path / "data"
    work = plan(few, output)
    prepare_units(work, output, workers=1, progress=False)
    before = tree(output)
    with open(output / ".merge.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another --merge is at work in .*, delete .*/\.merge\.lock$"):
            merge_units(work, output, workers=1, progress=False)
    assert tree_without_lock(output) == before

    def without_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    merge_units(work, output, workers=1, progress=False)
    assert tree_without_lock(output) == tree(few_unbroken)


def test_what_a_merge_killed_at_its_end_has_left_is_removed(few, few_unbroken, tmp_path):
    for number, action in enumerate((prepare_units, merge_units)):
        output = tmp_path / f"data{number}"
        shutil.copytree(few_unbroken, output)
        (output / ".prepare-0123.done" / "unit-000000").mkdir(parents=True)
        with pytest.raises(UserError, match="already holds a data set"):
            action(plan(few, output), output, progress=False)
        assert files(output) == files(few_unbroken)


def test_a_lost_shard_is_named(few, tmp_path):
    output = tmp_path / "data"
    work = plan(few, output)
    prepare_units(work, output, workers=1, progress=False)
    (staging,) = output.iterdir()
    next(staging.glob("unit-*/train/shard-*.tar")).unlink()
    message = rf"shard .*/train/shard-\d+\.tar was lost while it was moved into place; delete {staging} and prepare"
    with pytest.raises(DataError, match=message):
        merge_units(work, output)
    assert not (output / "dataset.json").exists()


def test_a_shard_that_was_there_is_not_taken_for_a_lost_one_of_the_same_size(tmp_path):
    old, new = write_files(tmp_path / "old", "a"), write_files(tmp_path / "new", "A")
    output = tmp_path / "data"
    prepare([old], output, **{**SETTINGS, "validation": 0}, workers=1, progress=False)
    work = plan(new, output, validation=0)
    prepare_units(work, output, workers=1, overwrite=True, progress=False)
    (lost,) = output.glob(".prepare-*/unit-000000/train/shard-0000.tar")
    assert lost.stat().st_size == (output / "train" / "shard-000000.tar").stat().st_size
    for file in (lost, lost.with_name(f"{lost.name}.index")):
        file.unlink()
    with pytest.raises(DataError, match="was lost while it was moved into place"):
        merge_units(work, output, overwrite=True)


def test_units_are_whole_or_gone_where_the_removal_of_others_is_killed(tmp_path):
    old, new = write_files(tmp_path / "old", "a"), write_files(tmp_path / "new", "A")
    settings = {**SETTINGS, "validation": 0, "workers": 1, "progress": False}
    ready, fresh = tmp_path / "ready", tmp_path / "fresh"
    prepare([new], fresh, **settings)
    prepare([old], ready, **settings)
    for seq_len in (64, 32):
        prepare_units(plan(new, ready, validation=0, seq_len=seq_len), ready, workers=1, overwrite=True, progress=False)
    for number in (1, 2, 3, 4, 6, 9):
        output = tmp_path / f"data{number}"
        shutil.copytree(ready, output)
        other = plan(new, output, validation=0, seq_len=32)
        assert killed_before(number, partial(merge_units, other, output, overwrite=True))
        prepare([new], output, overwrite=True, **settings)
        assert tree(output) == tree(fresh)
        check_whole(output)


def test_a_unit_of_which_a_part_was_deleted_is_done_again(few, few_unbroken, tmp_path):
    output = tmp_path / "data"
    prepare_units(plan(few, output), output, workers=1, progress=False)
    next(output.glob(".prepare-*/unit-000001/record.json")).unlink()
    prepare([few], output, **SETTINGS, workers=1, progress=False)
    check_equal(output, few_unbroken)


def test_a_split_stays_empty_where_the_removal_of_its_units_is_killed(few, tmp_path):
    start = partial(prepare, [few], **{**SETTINGS, "validation": 1e-9}, workers=1, progress=False)
    for number in (1, 2, 3, 5):
        output = tmp_path / f"data{number}"
        work = plan(few, output, validation=1e-9)
        prepare_units(work, output, workers=1, progress=False)
        staging = output / f".prepare-{work.fingerprint}"
        units = tree(staging)
        assert killed_before(number, partial(start, output=output))
        assert tree(staging) in ({}, units)  # never the half of them
        with pytest.raises(DataError, match="none of the 5 documents fell into the validation split"):
            start(output=output)
        assert not output.exists()


def test_what_killed_processes_were_writing_is_removed_and_what_others_write_is_not(few, tmp_path):
    output = tmp_path / "data"
    work = plan(few, output)
    do_units = partial(prepare_units, work, output, workers=1, progress=False)
    assert killed_before(1, do_units, ["fsync"])
    (lock,) = output.glob(".prepare-*/.unit-*.lock")
    killed = Path(str(lock).removesuffix(".lock"))
    assert any(killed.rglob("*.tar"))
    alive, lock_of_alive = Path(f"{killed}1"), Path(f"{killed}1.lock")
    alive.mkdir()
    with locked(lock_of_alive):
        do_units()
        assert sorted(killed.parent.glob(".unit-*")) == [alive, lock_of_alive]


# Killed for good


class Launchers:
    """Runs of launcher/prepare.py, each in a process group of its own, started at once."""

    def __init__(self, directory):
        self.log = directory / "log"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOG": str(self.log)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, *arguments):
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def wait(self):
        return int(self._process.stdout.readline())

    def stop(self):
        self._process.stdin.close()
        self._process.wait(timeout=60)


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    launchers = Launchers(tmp_path_factory.mktemp("launchers"))
    yield launchers
    launchers.stop()


def progress_of(output):
    """How many units are done, and shards in place."""
    return sum(1 for pattern in (".prepare-*/unit-*", "*/shard-*.tar") for _ in output.glob(pattern))


def kill_after(process, output, steps, seconds):
    """Kill a process group some time after it has done so many steps more, if it lives that long."""
    target = progress_of(output) + steps
    with suppress(ProcessLookupError):
        while progress_of(output) < target:
            os.kill(process, 0)
            time.sleep(0.001)
        time.sleep(seconds)
        os.killpg(process, signal.SIGKILL)


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_again_and_again_no_document_is_lost_or_doubled(corpus, unbroken, launchers, tmp_path, overwrite):
    chance = random.Random(int(overwrite))
    for attempt in range(5):  # it may be done before it is killed three times, on a machine that stalls
        output = tmp_path / f"data{attempt}"
        arguments = ["--input", corpus, "--output", output, *FLAGS, "--workers", "2"]
        if overwrite:
            prepare([corpus], output, seq_len=64, validation=0.3, workers=1, progress=False)
            arguments.append("--overwrite")
        kills = kill_again_and_again(launchers, output, arguments, chance)
        launchers.start(*arguments)
        status = launchers.wait()
        assert status == 0 or "already holds a data set" in launchers.log.read_text(), launchers.log.read_text()
        assert tree_without_lock(output) == tree(unbroken)
        assert count_documents(output) == count_documents(unbroken)
        if kills > 2:
            break
    assert kills > 2  # 6 unless this machine is much too slow


def kill_again_and_again(launchers, output, arguments, chance):
    """How often the same command was killed, of up to 6 times, before it was done."""
    for kills in range(6):
        process = launchers.start(*arguments)
        kill_after(process, output, chance.randrange(4), chance.uniform(0, 0.02))
        status = launchers.wait()
        check_whole(output)
        if status == 0:
            return kills
        assert status in (-signal.SIGKILL, 2), launchers.log.read_text()
    return 6


def test_the_command_itself_goes_on_where_it_was_killed(corpus, unbroken, launchers, tmp_path):
    for attempt in range(5):  # it may be done before it is killed, on a machine that stalls
        output = tmp_path / f"data{attempt}"
        arguments = ["--input", corpus, "--output", output, *FLAGS, "--workers", "2"]
        kill_after(launchers.start(*arguments), output, 3, 0)
        if launchers.wait() == -signal.SIGKILL:
            break
    assert not (output / "dataset.json").exists()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, LAUNCHER, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check_equal(output, unbroken)
    assert len(read_split(output, "train")) == DatasetInfo.load(output).splits["train"].samples
