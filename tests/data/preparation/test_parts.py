"""A data set made in parts, by any number of processes, and merged."""

import multiprocessing
import os
import random
from itertools import pairwise

import pytest
import webdataset

from nar_scale.data import DatasetInfo, merge_work_items, prepare, prepare_work_items
from nar_scale.errors import DataError, UserError
from tests.data.corpora import check_whole, tree, write_corpus
from tests.data.preparation.preparing import SETTINGS, check_equal, plan
from tests.errors import refused

# Parts


def test_the_corpus_has_many_units_and_shards(shared_corpus, unbroken):
    units = plan(shared_corpus, shared_corpus.parent / "nowhere").work_items
    assert len(units) > 9
    assert max(unit.size for unit in units) > 2 * SETTINGS["unit_bytes"]
    assert [piece.file.name for unit in units for piece in unit.pieces].count("lines.jsonl") > 2
    assert DatasetInfo.load(unbroken).splits["train"].shards > len(units)


def test_validation_samples_of_the_units_stand_together_in_shards_of_the_normal_size(shared_corpus, unbroken, tmp_path):
    output = tmp_path / "data"
    work = plan(shared_corpus, output)
    prepare_work_items(work, output, workers=1, progress=False)
    small = sorted(output.glob(".prepare-*/unit-*/validation/*.tar"))
    samples = [sample for shard in small for sample in webdataset.WebDataset(str(shard), shardshuffle=False)]
    merge_work_items(work, output, workers=1, progress=False)
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
def test_the_result_does_not_depend_on_the_number_of_workers(shared_corpus, unbroken, tmp_path, workers):
    prepare([shared_corpus], tmp_path / "data", **SETTINGS, workers=workers, progress=False)
    check_equal(tmp_path / "data", unbroken)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 40])
def test_the_result_does_not_depend_on_the_number_of_parts_nor_on_their_order(shared_corpus, unbroken, tmp_path, parts):
    output = tmp_path / "data"
    order = [*range(1, parts + 1), *range(1, parts + 1, 2)]  # some twice
    random.Random(parts).shuffle(order)
    done = {}
    for number in order:
        done[number] = prepare_work_items(
            plan(shared_corpus, output), output, (number, parts), workers=1, progress=False
        )
    assert sum(done.values()) == len(plan(shared_corpus, output).work_items)
    assert not (output / "dataset.json").exists()
    assert merge_work_items(plan(shared_corpus, output), output) == DatasetInfo.load(unbroken)
    check_equal(output, unbroken)


def do_part(shared_corpus, output, part, barrier):
    work = plan(shared_corpus, output)
    barrier.wait()
    prepare_work_items(work, output, part, workers=1, progress=False)


@pytest.mark.parametrize(
    "parts",
    [[(1, 1)] * 4, [(1, 3), (2, 3), (3, 3), (2, 3)], [(1, 2), (2, 2), (1, 1), (1, 1)], [(i, 40) for i in (1, 40)]],
)
def test_parts_are_done_by_several_processes_at_once(shared_corpus, unbroken, tmp_path, parts):
    output = tmp_path / "data"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(parts))
    processes = [context.Process(target=do_part, args=(shared_corpus, output, part, barrier)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(parts)
    prepare_work_items(plan(shared_corpus, output), output, workers=1, progress=False)
    merge_work_items(plan(shared_corpus, output), output)
    check_equal(output, unbroken)


def test_what_is_done_is_not_done_again(shared_corpus, unbroken, tmp_path, monkeypatch):
    output = tmp_path / "data"
    prepare_work_items(plan(shared_corpus, output), output, workers=1, progress=False)
    monkeypatch.setattr("nar_scale.data.preparation.work_item._pack", None)
    prepare([shared_corpus], output, **SETTINGS, workers=1, progress=False)
    check_equal(output, unbroken)


# Merging


def test_missing_units_are_counted_and_named(shared_corpus, tmp_path):
    output = tmp_path / "data"
    work = plan(shared_corpus, output)
    units = len(work.work_items)
    with refused(DataError, f"{units} of {units} ", output, "(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)", "--merge"):
        merge_work_items(work, output)
    for number in (1, 3):
        prepare_work_items(work, output, (number, 3), workers=1, progress=False)
    missing = [str(number + 1) for number in range(1, units, 3)]
    with refused(DataError, f"{len(missing)} of {units} ", output, f"({', '.join(missing)})", "--merge"):
        merge_work_items(work, output)
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
def test_parts_done_with_other_settings_do_not_count(shared_corpus, unbroken, tmp_path, changes):
    output = tmp_path / "data"
    prepare_work_items(plan(shared_corpus, output), output, workers=1, progress=False)
    if "text_field" in changes:  # the key of lines that are not there
        changes = {**changes, "include": "*.txt"}
    with refused(DataError, output, "--merge"):
        merge_work_items(plan(shared_corpus, output, **changes), output)
    merge_work_items(plan(shared_corpus, output), output)
    check_equal(output, unbroken)


def test_parts_done_of_other_inputs_do_not_count(tmp_path):
    shared_corpus, output = tmp_path / "shared_corpus", tmp_path / "data"
    write_corpus(shared_corpus)
    prepare_work_items(plan(shared_corpus, output), output, workers=1, progress=False)
    file = shared_corpus / "00.txt"
    before = file.read_bytes(), file.stat().st_mtime_ns

    def assert_refused():
        with refused(DataError, output, "--merge"):
            merge_work_items(plan(shared_corpus, output), output)

    os.utime(file, ns=(before[1] + 1, before[1] + 1))
    assert_refused()
    file.write_bytes(before[0] + b"!")
    os.utime(file, ns=(before[1], before[1]))
    assert_refused()
    file.rename(shared_corpus / "moved.txt")
    assert_refused()
    (shared_corpus / "moved.txt").rename(file)
    file.write_bytes(before[0])
    os.utime(file, ns=(before[1], before[1]))
    (shared_corpus / "new.txt").write_text("new")
    assert_refused()
    (shared_corpus / "new.txt").unlink()
    merge_work_items(plan(shared_corpus, output), output)
    check_whole(output)


def test_the_number_of_workers_is_no_setting(shared_corpus, tmp_path):
    assert plan(shared_corpus, tmp_path / "a", workers=2) == plan(shared_corpus, tmp_path / "b", workers=1)


def test_merging_again(shared_corpus, unbroken, tmp_path):
    output = tmp_path / "data"
    prepare([shared_corpus], output, **SETTINGS, workers=1, progress=False)
    assert merge_work_items(plan(shared_corpus, output), output) == DatasetInfo.load(unbroken)
    with refused(UserError, output, "--overwrite"):
        merge_work_items(plan(shared_corpus, output, seq_len=32), output)
    with refused(DataError, output, "--merge"):
        merge_work_items(plan(shared_corpus, output), output, overwrite=True)
    check_equal(output, unbroken)
    prepare_work_items(plan(shared_corpus, output), output, overwrite=True, workers=1, progress=False)
    merge_work_items(plan(shared_corpus, output), output, overwrite=True)
    check_equal(output, unbroken)


def test_a_data_set_that_is_there_is_neither_replaced_nor_prepared_for_unless_asked(shared_corpus, unbroken, tmp_path):
    output = tmp_path / "data"
    prepare([shared_corpus], output, **{**SETTINGS, "seq_len": 128}, workers=1, progress=False)
    before = tree(output)
    for action in (prepare_work_items, merge_work_items):
        with refused(UserError, output, "--overwrite"):
            action(plan(shared_corpus, output), output)
    assert tree(output) == before
    prepare_work_items(plan(shared_corpus, output), output, workers=1, overwrite=True, progress=False)
    with refused(UserError, output, "--overwrite"):
        merge_work_items(plan(shared_corpus, output), output)
    assert {name: tree(output)[name] for name in before} == before
    merge_work_items(plan(shared_corpus, output), output, overwrite=True)
    check_equal(output, unbroken)


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0), (-1, -1)])
def test_parts_that_do_not_exist_are_refused(shared_corpus, tmp_path, part):
    with refused(UserError, f"{part[0]}/{part[1]}"):
        prepare_work_items(plan(shared_corpus, tmp_path / "data"), tmp_path / "data", part)
    assert not (tmp_path / "data").exists()
