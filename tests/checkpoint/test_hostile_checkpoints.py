"""Checkpoints from strangers run nothing, read nothing but themselves, copy nothing else, and are refused in a line."""

import io
import json
import os
import pickle
import struct
import zipfile

import pytest
import torch

from nar_scale.checkpoint import consolidate, list_files, load_consolidated, record_files
from nar_scale.checkpoint.store import verify_integrity
from nar_scale.checkpoint.weights import open_weights
from nar_scale.errors import CheckpointError, UserError
from nar_scale.interop import import_llama
from tests.checkpoint.test_consolidated import export, finished_run
from tests.data.shard_files import CreatesFile
from tests.errors import assert_names, refused


@pytest.fixture
def exported(tmp_path):
    export(tmp_path / "model")
    return tmp_path / "model"


def payloads(evil):
    """By name, weights that an unpickler or a careless reader of the format would fall for."""
    saved, archive = io.BytesIO(), io.BytesIO()
    torch.save({"net.token_emb.weight": CreatesFile(evil)}, saved)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(CreatesFile(evil)))
    header = json.dumps({"net.token_emb.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**62]}}).encode()
    negative = json.dumps({"net.token_emb.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}).encode()
    return {
        "pickle": pickle.dumps(CreatesFile(evil)),
        "old pickle": pickle.dumps(CreatesFile(evil), protocol=0),
        "torch": saved.getvalue(),
        "zip": archive.getvalue(),
        "endless header": struct.pack("<Q", 2**63) + b"{}",
        "values beyond the file": struct.pack("<Q", len(header)) + header + bytes(8),
        "negative": struct.pack("<Q", len(negative)) + negative + bytes(8),
        "deep header": struct.pack("<Q", 40_000) + b"[" * 40_000,
    }


def seal(directory):
    """Record the files anew, as whoever made them would."""
    names = [name for name in list_files(directory) if (directory / name).is_file()]
    (directory / "manifest.json").write_text(json.dumps(record_files(directory, names)))


def assert_refused(evil, call, *named):
    with pytest.raises(UserError) as raised:
        call()
    assert not evil.exists()
    assert_names(str(raised.value), *named)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


PAYLOADS = list(payloads("evil"))


def test_the_payloads_do_what_they_are_for(tmp_path):
    pickle.loads(payloads(tmp_path / "evil")["pickle"])
    assert (tmp_path / "evil").exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_weights_are_never_unpickled_whatever_their_name(exported, tmp_path, payload):
    evil = tmp_path / "evil"
    (exported / "model.safetensors").write_bytes(payloads(evil)[payload])
    seal(exported)
    assert_refused(evil, lambda: load_consolidated(exported), exported)
    assert_refused(evil, lambda: load_consolidated(exported, verify=False), exported)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_training_checkpoint_is_never_unpickled(tmp_path, payload):
    evil = tmp_path / "evil"
    store, _ = finished_run(tmp_path / "run", steps=(10,))
    path = store.path(10)
    (path / "partitions" / "rank-00000.safetensors").write_bytes(payloads(evil)[payload])
    seal(path)
    assert_refused(evil, lambda: consolidate(tmp_path / "run", tmp_path / "model"), path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "mp_rank_00_model_states.pt", "model.safetensors.pt"]
)
def test_pickles_of_other_libraries_are_not_looked_at(tmp_path, name):
    evil, directory = tmp_path / "evil", tmp_path / "foreign"
    directory.mkdir()
    (directory / name).write_bytes(payloads(evil)["torch"])
    (directory / "config.json").write_text("{}")
    for read in (load_consolidated, lambda path: open_weights(path).__enter__(), lambda path: import_llama(path, evil)):
        assert_refused(evil, lambda read=read: read(directory), directory)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "partitions/../../secret"])
def test_a_manifest_names_nothing_outside(exported, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    manifest = exported / "manifest.json"
    record = record_files(tmp_path, ["secret"])["secret"]
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), name: record}))
    assert_names(str(verify_integrity(exported)), manifest, "outside")
    with refused(CheckpointError, manifest):
        load_consolidated(exported)


@pytest.mark.parametrize("name", ["config.yaml", "model.json", "manifest.json", "tokenizer.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(exported, name):
    (exported / name).unlink(missing_ok=True)
    if name != "manifest.json":
        seal(exported)
    os.mkfifo(exported / name)
    with refused(CheckpointError, exported / name):
        load_consolidated(exported)


@pytest.mark.parametrize("name", ["config.yaml", "model.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("target", ["secret", "/dev/zero", "/dev/random", "."])
def test_a_link_is_read_as_what_it_stands_for_or_refused(exported, tmp_path, name, target):
    """What a link leads to is only parsed, so that no more than a message's few letters of it can be seen."""
    (tmp_path / "secret").write_text("line one of the secret\n" * 100)
    (exported / name).unlink(missing_ok=True)
    (exported / name).symlink_to(tmp_path / target)
    if name == "tokenizer.json":
        info = json.loads((exported / "model.json").read_text())
        (exported / "model.json").write_text(json.dumps({**info, "tokenizer": name}))
    seal(exported)
    assert_refused(tmp_path / "evil", lambda: load_consolidated(exported), exported)


@pytest.mark.parametrize("content", ["root:x:0:0", '{"token": "secret"}', '["model"]', "", "[" * 10_000])
def test_no_other_file_is_copied_as_the_tokenizer(tmp_path, content):
    secret = tmp_path / "credentials.json"
    secret.write_text(content)
    finished_run(tmp_path / "run", steps=(10,), tokenizer=str(secret))
    with refused(CheckpointError, secret, "state.json"):
        consolidate(tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_index_of_weights_leads_to_no_other_directory(tmp_path):
    directory = tmp_path / "llama"
    directory.mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"")
    (directory / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    index = {"weight_map": {"lm_head.weight": "../model.safetensors", "x": "/etc/passwd"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(tmp_path / "evil", lambda: import_llama(directory, tmp_path / "out"), directory)
    assert not (tmp_path / "out").exists()
