"""Data from strangers runs nothing, reads nothing but itself, and writes nothing but what was asked for."""

import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
import yaml

from nar_scale.config import load_config, validate_config
from nar_scale.data import DatasetIndex, DatasetInfo, SampleFormat, SequentialStream, SplitInfo, find_sequential_shards
from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.data.loading.collate import BatchReader
from nar_scale.errors import ConfigError, DataError, UserError
from nar_scale.training.data.build import open_training_data
from tests.data.shard_files import CreatesFile, npy, write_tar
from tests.errors import refused

SEQUENCE = np.arange(8, dtype=np.uint16)
ESCAPES = "\x1b[2J\x1b]0;title\x07\n\r\u202ek\udcff"
ALONE = SimpleNamespace(is_main=True, size=1, local_size=1, broadcast=lambda value: value)


def payloads(path):
    """By name, files that an unpickler would fall for."""
    objects = io.BytesIO()
    np.save(objects, np.array([CreatesFile(path)], dtype=object), allow_pickle=True)
    records = io.BytesIO()
    np.save(records, np.array([(1, CreatesFile(path))], dtype=[("a", "i4"), ("b", "O")]), allow_pickle=True)
    saved = io.BytesIO()
    torch.save({"tokens": CreatesFile(path)}, saved)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("tokens.npy", objects.getvalue())
    return {
        "pickle": pickle.dumps(CreatesFile(path)),
        "old pickle": pickle.dumps(CreatesFile(path), protocol=0),
        "objects": objects.getvalue(),
        "records": records.getvalue(),
        "torch": saved.getvalue(),
        "npz": archive.getvalue(),
    }


PAYLOADS = ["pickle", "old pickle", "objects", "records", "torch", "npz"]
FIELDS = [
    "pkl",
    "pickle",
    "pyd",
    "pt",
    "pth",
    "npy",
    "npz",
    "tokens.npy",
    "tokens.pkl",
    "cls",
    "cls.npy",
    "ten",
    "mp",
    "cbor",
]


def open_shards(directory, fields=("tokens.npy",), **options):
    return DatasetIndex.open(directory, "*.tar", fields, progress=False, **options)


def read_batch(index, skip_faults=False, **sample_format):
    ids = np.arange(index.num_samples)
    return BatchReader(index, SampleFormat(8, 300, **sample_format), skip_faults).read(ids, ids, ids)


def read_input(path, text_field="text"):
    return [document for piece in split_into_pieces(path, 1 << 20) for document in read_piece(piece, text_field)]


def harmless(message):
    return message.isprintable() and len(message) < 2000


@contextmanager
def refused_harmlessly():
    """What is done within may be refused, in one line."""
    try:
        yield
    except UserError as error:
        if not harmless(str(error)):
            raise AssertionError(repr(error)) from error


def test_the_payloads_do_what_they_are_for(tmp_path):
    pickle.loads(payloads(tmp_path / "evil")["pickle"])
    assert (tmp_path / "evil").exists()


# Nothing is unpickled


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_member_is_never_unpickled(tmp_path, payload, field):
    evil = tmp_path / "evil"
    content = payloads(evil)[payload]
    shards = tmp_path / "shards"
    shards.mkdir()
    other = [("0.other.npy", npy(SEQUENCE))]
    write_tar(shards / "0.tar", [(f"0.{field}", content), *other])
    index = open_shards(shards, (field,))
    assert index.read(0, field) == content
    as_tokens, as_class = {"field": field}, {"field": "other.npy", "class_field": field}
    for sample_format in (as_tokens, as_class, {"field": "other.npy", "document_field": field}):
        with pytest.raises(DataError) as raised:
            read_batch(index, **sample_format)
        assert harmless(str(raised.value))
        assert read_batch(index, skip_faults=True, **sample_format).lengths.tolist() == [0]
    for text_field in (field, "text", "json"):
        with refused_harmlessly():
            read_input(shards / "0.tar", text_field)
    assert not evil.exists()


@pytest.mark.parametrize("field", ["pkl", "pyd", "pth", "npy", "tokens.npy"])
def test_a_sequential_stream_unpickles_nothing(tmp_path, field):
    evil = tmp_path / "evil"
    for number, content in enumerate(payloads(evil).values()):
        shard = write_tar(tmp_path / f"{number}.tar", [(f"0.{field}", content)])
        stream = SequentialStream(
            [str(shard)],
            SampleFormat(8, 300, field),
            seed=0,
            global_batch_size=1,
            micro_batch_size=1,
            rank=0,
            world_size=1,
            workers=0,
        )
        with pytest.raises(DataError) as raised:
            next(iter(stream))
        assert harmless(str(raised.value))
    assert not evil.exists()


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.pkl", "a.pt", "a.pkl.gz", "a.jsonl", "a.tar", "a.parquet", "a.zst"]
)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_an_input_is_never_unpickled(tmp_path, payload, name):
    evil = tmp_path / "evil"
    content = payloads(evil)[payload]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with refused_harmlessly():
        read_input(tmp_path / name)
    assert not evil.exists()


def test_a_pickle_beside_a_shard_is_no_index(tmp_path):
    evil = tmp_path / "evil"
    write_tar(tmp_path / "0.tar", [("0.tokens.npy", npy(SEQUENCE))])
    for content in payloads(evil).values():
        (tmp_path / "0.tar.index").write_bytes(content)
        assert read_batch(open_shards(tmp_path)).tokens.tolist() == [SEQUENCE.tolist()]
    assert not evil.exists()


# Nothing is run


def config_of(**data):
    return validate_config(
        {
            "model": {"dim": 16, "depth": 1, "heads": 2, "max_seq_len": 8},
            "objective": {"kind": "autoregressive"},
            "data": {"vocabulary_size": 300, "tokenizer": "byte", "validation": "", **data},
            "optimizer": {"learning_rate": 0.001},
            "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
        },
        "a test",
    )


COMMANDS = [
    "pipe:touch {evil}",
    "pipe:touch {evil} ; cat {shard}",
    "pipe:cat {shard} | tee {evil}",
    "pipe:cat {{a,b}}; touch {evil}",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_refused_and_not_run(tmp_path, command):
    evil = tmp_path / "evil"
    shard = write_tar(tmp_path / "0.tar", [("0.tokens.npy", npy(SEQUENCE))])
    command = command.format(evil=evil, shard=shard)
    with refused(DataError, "pipe:", "data.sequential") as raised:
        open_training_data(config_of(directory=str(tmp_path), train=command), ALONE)
    assert harmless(str(raised.value))
    for directory, pattern in ((tmp_path, command), (command, "*.tar"), (tmp_path, ["0.tar", command])):
        with refused(DataError, "pipe:", "data.sequential"):
            DatasetIndex.open(directory, pattern, progress=False)
    validation = config_of(directory=str(tmp_path), train="*.tar", validation=command)
    evaluated = validation.model_copy(update={"logging": validation.logging.model_copy(update={"evaluate_every": 1})})
    with refused(DataError, "data.sequential"):
        open_training_data(evaluated, ALONE)
    with pytest.raises(UserError):
        open_training_data(config_of(directory=command), ALONE)
    with pytest.raises(UserError):
        open_training_data(config_of(sources={"a": {"directory": command}}), ALONE)
    with refused(DataError, "data.sequential"):
        open_training_data(config_of(sources={"a": {"directory": str(tmp_path), "train": command}}), ALONE)
    assert not evil.exists()


@pytest.mark.parametrize(
    "name", ["|touch evil", "`touch evil`.tar", "$(touch evil).tar", "; touch evil;.tar", "-rf", "file:touch"]
)
def test_no_file_name_is_a_command(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / name, [("0.tokens.npy", npy(SEQUENCE))])
    assert DatasetIndex.open(tmp_path, name, progress=False).num_samples == 1
    assert DatasetIndex.open(".", [name], progress=False).num_samples == 1
    if name.endswith(".tar"):
        read_input(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_a_sequential_stream_takes_files_for_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pipe:touch evil;"
    folder.mkdir()
    write_tar(folder / "0.tar", [("0.tokens.npy", npy(SEQUENCE))])
    write_tar(tmp_path / "pipe:touch evil", [("0.tokens.npy", npy(SEQUENCE))])
    found = [url for directory in (".", "..", str(tmp_path)) for url in find_sequential_shards(directory, "**/*")]
    assert found
    assert not any(url.startswith("pipe:") for url in found)


def test_a_command_is_run_only_where_it_is_asked_for(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [("0.tokens.npy", npy(SEQUENCE))])
    config = config_of(directory=str(tmp_path), train=f"pipe:cat {shard}", sequential=True)
    data = open_training_data(config, ALONE)
    assert data.urls == (f"pipe:cat {shard}",)
    assert "inexact" in data.summary


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.TAR.GZ", "0.tar.zst", "0.tar.xz"])
def test_a_compressed_shard_is_refused_with_a_way_out(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"tar"))
    for pattern in (name, "*", [name]):
        with refused(DataError, tmp_path / name, "data.sequential"):
            open_training_data(config_of(directory=str(tmp_path), train=name), ALONE)
        with refused(DataError, tmp_path / name, "data.sequential"):
            DatasetIndex.open(tmp_path, pattern, progress=False)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch evil']",
        "!!python/object/apply:subprocess.check_output [[touch, evil]]",
        "!!python/object/new:os.system ['touch evil']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/object:os._wrap_close {}",
        "!!python/tuple [a]",
        "!include /etc/passwd",
    ],
)
def test_yaml_makes_no_objects(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(f"data:\n  directory: {tag}\n")
    with refused(ConfigError, tmp_path / "a.yaml") as raised:
        load_config(tmp_path / "a.yaml")
    assert harmless(str(raised.value))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(config_of(directory="a").model_dump(mode="json")))
    with refused(ConfigError, "data.directory"):
        load_config(tmp_path / "b.yaml", [f"data.directory={tag}"])
    assert not (tmp_path / "evil").exists()


# Nothing is read or written but what was asked for


@pytest.fixture
def guarded(tmp_path):
    """A folder for shards beside a secret; afterwards all but the folder is as it was."""
    secret = tmp_path / "secret"
    secret.write_bytes(npy(np.arange(200, 208)))
    (tmp_path / "shards").mkdir()
    yield tmp_path / "shards", secret
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "shards"]
    assert secret.read_bytes() == npy(np.arange(200, 208))


OUTSIDE = [
    "../../outside",
    "/tmp/outside/absolute",
    "a/../../../outside",
    "./../outside",
    "~/outside",
    "//outside",
    "C:\\outside",
]
OUTSIDE += ["..\\..\\outside", "\0/outside", "/dev/null", "/proc/self/mem"]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("key", OUTSIDE)
def test_a_name_is_not_used_as_a_path(guarded, key, tar_format):
    shards, _ = guarded
    shard = write_tar(shards / "0.tar", [(f"{key}.tokens.npy", npy(SEQUENCE)), ("1.tokens.npy", b"bad")], tar_format)
    before = {path: os.stat(path).st_mtime_ns for path in (shards.parent, shards)}
    index = open_shards(shards, index_directory=shards / "indices")
    batch = read_batch(index, skip_faults=True)
    names = [index.name(number) for number in range(index.num_samples)]
    is_sample = not key.startswith(("\0", "..\\"))  # such names have no key
    assert batch.lengths.tolist() == ([8, 0] if is_sample else [0])
    assert all(harmless(name) for name in names)
    assert read_tokens(shard) == ([SEQUENCE.tolist()] if is_sample else [])
    assert sorted(path.name for path in shards.iterdir()) == ["0.tar", "indices"]
    assert [path.name[17:] for path in (shards / "indices").iterdir()] == ["0.tar.index"]
    assert os.stat(shards.parent).st_mtime_ns == before[shards.parent]


def read_tokens(shard):
    """The tokens of a tar as an input, up to the first thing that is refused."""
    documents = []
    with refused_harmlessly():
        documents.extend(document for document in read_piece(split_into_pieces(shard, 1 << 20)[0]))
    return [document.tokens.tolist() for document in documents if hasattr(document, "tokens")]


LINKS = {
    "symbolic": (tarfile.SYMTYPE, {}),
    "hard": (tarfile.LNKTYPE, {}),
    "hard with a size": (tarfile.LNKTYPE, {"size": 192}),
    "symbolic with a size": (tarfile.SYMTYPE, {"size": 192}),
    "character device": (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}),
    "block device": (tarfile.BLKTYPE, {"devmajor": 8, "devminor": 0}),
    "pipe": (tarfile.FIFOTYPE, {}),
    "folder": (tarfile.DIRTYPE, {}),
}


@pytest.mark.parametrize(
    "target", ["{secret}", "../secret", "../../../../../../etc/passwd", "/etc/passwd", "/dev/zero", "0.tokens.npy"]
)
@pytest.mark.parametrize("kind", LINKS)
def test_no_link_or_device_is_followed(guarded, kind, target):
    shards, secret = guarded
    link = {"type": LINKS[kind][0], "linkname": target.format(secret=secret), "mode": 0o777, **LINKS[kind][1]}
    shard = write_tar(shards / "0.tar", [("k.tokens.npy", link), ("k.cls", b"1"), ("l.tokens.npy", npy(SEQUENCE))])
    batch = read_batch(open_shards(shards, (), skip_faults=True), skip_faults=True)
    assert batch.lengths.tolist() == [0, 8]
    assert "sample k: no field 'tokens.npy', only cls" in batch.faults[0]
    with refused(DataError, "sample k", "'tokens.npy'"):
        open_shards(shards)
    assert read_tokens(shard) == [SEQUENCE.tolist()]


def test_a_sequential_stream_follows_no_link(guarded):
    shards, secret = guarded
    for number, (kind, more) in enumerate(LINKS.values()):
        link = {"type": kind, "linkname": str(secret), **more}
        write_tar(shards / f"{number}.tar", [("k.tokens.npy", link), ("../../l.cls", b"1")])
        stream = SequentialStream(
            [str(shards / f"{number}.tar")],
            SampleFormat(8, 300),
            seed=0,
            global_batch_size=1,
            micro_batch_size=1,
            rank=0,
            world_size=1,
            workers=0,
        )
        with pytest.raises(DataError):
            next(iter(stream))


def test_a_name_in_a_message_cannot_fool_a_terminal(tmp_path):
    key, field = f"a{ESCAPES}b", f"x{ESCAPES}y"
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        write_tar(
            tmp_path / "0.tar",
            [(f"{key}.{field}", b"a"), (f"{key}.tokens.npy", b"bad"), ("1.cls", b"\x1b[2J\n")],
            tar_format,
        )
        (tmp_path / "0.tar.index").unlink(missing_ok=True)
        index = open_shards(tmp_path, (), skip_faults=True)
        batch = read_batch(index, skip_faults=True)
        assert len(batch.faults) == 2
        faults = [*batch.faults, *read_batch(index, skip_faults=True, class_field="cls").faults]
        assert "sample a\\x1b[2J\\x1b]0;title\\x07\\x0a\\x0d\\x202ek" in faults[0]
        messages = [*faults, index.name(0)]
        for fields in (("tokens.npy", "cls"), (field,), ("nothing",)):
            with pytest.raises(DataError) as raised:
                open_shards(tmp_path, fields)
            messages.append(str(raised.value))
        for text_field in ("text", "nothing", field):
            try:
                read_input(tmp_path / "0.tar", text_field)
            except UserError as error:
                messages.append(str(error))
        assert len(messages) > 8
        for message in messages:
            assert harmless(message.replace(field, "")), message


def test_an_input_in_a_message_cannot_fool_a_terminal(tmp_path):
    for content in ({"a\x1b[2J\n": 1}, {"text": ["\x1b[2J\n"]}, ["\x1b[2J\n\u202e"], {"\u202e" * 2000: 1}):
        (tmp_path / "a.jsonl").write_text(
            json.dumps(content, ensure_ascii=False).replace("\n", "\\n"), encoding="utf-8"
        )
        with pytest.raises(DataError) as raised:
            read_input(tmp_path / "a.jsonl")
        assert harmless(str(raised.value))
    np.savez(tmp_path / "a.npz", **{"a\x1b[2J\nb": SEQUENCE, "c": SEQUENCE})
    with pytest.raises(DataError) as raised:
        read_input(tmp_path / "a.npz")
    assert harmless(str(raised.value))
    np.save(tmp_path / "a.npy", np.zeros(3, [("a\x1b[2J\n" * 100, "i4")]))
    with pytest.raises(DataError) as raised:
        read_input(tmp_path / "a.npy")
    assert harmless(str(raised.value))


# dataset.json


def info_with(directory, **changes):
    split = SplitInfo(documents=1, samples=1, tokens=8, bytes=8, shards=1)
    info = DatasetInfo("byte", 257, 256, 8, "tokens.npy", {"train": split}, {})
    info.save(directory)
    path = directory / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PATHS = [
    "../../x",
    "../secret",
    "/etc/passwd",
    "sub/tokenizer.json",
    "./tokenizer.json",
    "tokenizer.json/",
    "https://a/b",
    "pipe:touch x",
    "",
]


@pytest.mark.parametrize("tokenizer", [*PATHS, 5, True, ["byte"], {"a": 1}, "byte\n\x1b[2J"])
def test_a_data_set_names_no_tokenizer_outside_of_it(tmp_path, tokenizer):
    directory = tmp_path / "data"
    directory.mkdir()
    (tmp_path / "secret").write_text("{}")
    write_tar(directory / "0.tar", [("0.tokens.npy", npy(SEQUENCE))])
    info_with(directory, tokenizer=tokenizer)
    for find in (lambda: DatasetInfo.load(directory), lambda: DatasetInfo.find(str(directory), {})):
        with refused(DataError, directory / "dataset.json", "tokenizer") as raised:
            find()
        assert harmless(str(raised.value))
    for given in ({}, {"tokenizer": None}):
        with refused(DataError, directory / "dataset.json", "tokenizer"):
            open_training_data(config_of(directory=str(directory), train="*.tar", **given), ALONE)


@pytest.mark.parametrize("tokenizer", ["byte", "tokenizer.json", None])
def test_a_data_set_names_its_own_tokenizer(tmp_path, tokenizer):
    write_tar(tmp_path / "0.tar", [("0.tokens.npy", npy(SEQUENCE))])
    info_with(tmp_path, tokenizer=tokenizer)
    assert DatasetInfo.load(tmp_path).tokenizer == tokenizer
    data = open_training_data(config_of(directory=str(tmp_path), train="*.tar", tokenizer=None), ALONE)
    assert data.tokenizer == (str(tmp_path / tokenizer) if tokenizer == "tokenizer.json" else tokenizer)


# The whole of it under a watch


WATCH = """
import os, sys
allowed = os.path.realpath(sys.argv[1])
def watch(event, arguments):
    runs = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
    if event.startswith(runs):
        os.write(1, f"{event} {arguments}\\n".encode())
    if event == "open" and watching and isinstance(arguments[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith((allowed, "/proc/self", "/sys/fs/cgroup", "/proc", sys.prefix, sys.base_prefix)):
            os.write(1, f"open {path}\\n".encode())
watching = False
sys.addaudithook(watch)
import numpy as np
from nar_scale.data import DatasetIndex
from nar_scale.data.loading.collate import BatchReader
from nar_scale.data.formats.inputs import read_piece, split_into_pieces
from nar_scale.data.shards.sample_format import SampleFormat
from nar_scale.errors import UserError
os.write(1, b"start\\n")
watching = True
from pathlib import Path
index = DatasetIndex.open(allowed, "*.tar", (), progress=False, skip_faults=True)
ids = np.arange(index.num_samples)
for field in ("tokens.npy", "pkl", "pyd", "pt", "cls", "txt"):
    BatchReader(index, SampleFormat(8, 300, field, class_field="cls"), True).read(ids, ids, ids)
for path in sorted(Path(allowed).glob("*.tar")):
    for field in ("text", "tokens.npy", "pkl", "pt"):
        try:
            list(read_piece(split_into_pieces(path, 1 << 20)[0], field))
        except UserError:
            pass
os.write(1, b"end\\n")
"""


def test_a_hostile_shard_touches_no_other_file(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    members = [
        (f"{number}.{field}", content)
        for number, content in enumerate(payloads(tmp_path / "evil").values())
        for field in ("tokens.npy", "pkl", "pyd", "pt", "cls", "txt")
    ]
    members += [
        (f"l{number}.tokens.npy", {"type": kind, "linkname": "/etc/passwd"})
        for number, (kind, _) in enumerate(LINKS.values())
    ]
    members += [(f"{key}.tokens.npy", npy(SEQUENCE)) for key in OUTSIDE]
    write_tar(shards / "0.tar", members)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(shards)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[lines.index("start") :] == ["start", "end"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards"]
    assert sorted(path.name for path in shards.iterdir()) == ["0.tar", "0.tar.index"]


def test_shards_of_webdataset_itself_are_read(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": "a", "tokens.npy": SEQUENCE, "pyd": {"a": 1}, "cls": 3})
    batch = read_batch(open_shards(tmp_path), class_field="cls")
    assert batch.tokens.tolist() == [SEQUENCE.tolist()]
    assert batch.classes.tolist() == [3]
