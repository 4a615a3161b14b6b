import time

from nar_scale.checkpoint import CheckpointStore
from nar_scale.training.consolidating import Consolidations


def outputs(store, *steps):
    for step in steps:
        (store.directory.parent / "consolidated" / store.path(step).name).mkdir(parents=True)


def names(store):
    return sorted(path.name for path in (store.directory.parent / "consolidated").iterdir())


def test_going_back_sets_aside_what_lies_ahead(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    outputs(store, 10, 20, 30)
    consolidations = Consolidations(store)
    consolidations.forget_after(10)
    assert names(store) == [".superseded-step-000000020", ".superseded-step-000000030", "step-000000010"]
    outputs(store, 20)
    consolidations.forget_after(10)
    assert names(store) == [".superseded-step-000000020", ".superseded-step-000000030", "step-000000010"]


def test_what_is_there_is_not_made_again(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints")
    outputs(store, 10)
    consolidations = Consolidations(store)
    consolidations.add(10)
    assert consolidations.steps == []


def test_a_failure_is_told_and_the_next_one_begins(tmp_path, capfd):
    store = CheckpointStore(tmp_path / "checkpoints")
    consolidations = Consolidations(store)
    consolidations.add(10)
    consolidations.add(20)
    consolidations.add(20)
    assert consolidations.steps == [10, 20]
    while consolidations.steps == [10, 20]:
        time.sleep(0.05)
        consolidations.advance()
    told = capfd.readouterr().err
    assert told.endswith("the checkpoint of step 10 could not be consolidated\n")
    assert "has no checkpoint of step 10" in told
    assert consolidations._process is not None
    assert consolidations._process.poll() is None
    consolidations.abandon()


def test_one_under_way_is_ended_when_the_run_goes_back(tmp_path):
    consolidations = Consolidations(CheckpointStore(tmp_path / "checkpoints"))
    consolidations.add(10)
    consolidations.forget_after(5)
    assert consolidations.steps == []
    consolidations.advance()
