"""The stream over shards on a server: the same samples, each shard fetched once and ahead of time."""

import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from nar_scale.commands import prepare as launcher
from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, ShardCache, TokenStream, inspect, prepare
from nar_scale.errors import DataError
from nar_scale.evaluation import evaluate_dataset
from nar_scale.model import Decoder, TransformerWrapper
from nar_scale.objectives import AutoregressiveWrapper
from tests.data.object_server import ObjectServer
from tests.data.shard_files import numbered_index
from tests.errors import assert_names, refused

COUNTS = [40, 1, 25, 34]
SHARDS = "shard-{000000..000003}.tar"


@pytest.fixture
def local(tmp_path):
    (tmp_path / "local").mkdir()
    return numbered_index(tmp_path / "local", COUNTS)


@pytest.fixture
def server(local, tmp_path):
    with ObjectServer() as server:
        for file in (tmp_path / "local").iterdir():
            server.put(f"/web/{file.name}", file.read_bytes())
        yield server


def stream(index, **changes):
    settings = {"global_batch_size": 20, "micro_batch_size": 5, "rank": 0, "world_size": 1, "workers": 0, **changes}
    return TokenStream(index, SampleOrder(index.counts, 0, 2), SampleFormat(2, 200), **settings)


def tokens(index, batches, **changes):
    return torch.cat([batch.tokens for batch in islice(stream(index, **changes), batches)])


def open_remote(server, cache):
    return DatasetIndex.open(f"{server.address}/web", SHARDS, cache=cache, progress=False)


def fetches(server, suffix):
    return {path: number for path, number in server.gets.items() if path.endswith(suffix)}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_samples_are_those_of_local_shards(server, local, tmp_path, workers):
    index = open_remote(server, ShardCache(tmp_path / "cache", 10**7))
    assert index.fingerprint == local.fingerprint
    assert torch.equal(tokens(index, 40, workers=workers), tokens(local, 40))
    assert set(fetches(server, ".tar").values()) == {1}
    assert set(fetches(server, ".index").values()) == {1}
    again = open_remote(server, ShardCache(tmp_path / "cache", 10**7))
    assert torch.equal(tokens(again, 20), tokens(local, 20))
    assert set(server.gets.values()) == {1}


def test_indices_that_are_not_there_are_built(server, local, tmp_path):
    for path in [path for path in server.objects if path.endswith(".index")]:
        del server.objects[path]
    index = open_remote(server, ShardCache(tmp_path / "cache", 10**7))
    assert index.fingerprint == local.fingerprint
    assert torch.equal(tokens(index, 20), tokens(local, 20))
    assert set(fetches(server, ".tar").values()) == {1}


def test_a_cache_too_small_for_all_shards_still_gives_every_sample(server, local, tmp_path):
    sizes = [len(content) for path, content in server.objects.items() if path.endswith(".tar")]
    index = open_remote(server, ShardCache(tmp_path / "cache", max(sizes) + min(sizes)))
    assert torch.equal(tokens(index, 40), tokens(local, 40))


def test_shards_are_fetched_before_they_are_read(server, tmp_path):
    index = open_remote(server, ShardCache(tmp_path / "cache", 10**7))
    next(islice(stream(index), 9, None))  # located are now the next hundreds of samples: all shards
    deadline = time.monotonic() + 20
    while len(fetches(server, ".tar")) < len(COUNTS) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(fetches(server, ".tar").values()) == {1}
    assert len(fetches(server, ".tar")) == len(COUNTS)


def test_a_shard_that_has_changed_on_the_server_is_refused_by_name(server, tmp_path):
    index = open_remote(server, ShardCache(tmp_path / "cache", 10**7))
    content = server.objects["/web/shard-000002.tar"]
    server.put("/web/shard-000002.tar", content.replace(b"000000050", b"000000051"))
    with refused(DataError, f"{server.address}/web/shard-000002.tar"):
        tokens(index, 20)


def test_a_script_that_ends_with_the_stream_open_ends(tmp_path, local):
    script = f"""
from nar_scale.data import *
index = DatasetIndex.open({str(tmp_path / "local")!r}, "*.tar", progress=False)
stream = TokenStream(index, SampleOrder(index.counts, 0), SampleFormat(2, 200), global_batch_size=4,
                     micro_batch_size=4, rank=0, world_size=1, workers=2)
batches = iter(stream)
print(next(batches).tokens.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[3]
    )
    assert (done.returncode, done.stdout) == (0, "torch.Size([4, 2])\n"), done.stderr


def launch(*arguments):
    return launcher.main([str(argument) for argument in arguments])


def test_indices_are_built_before_training_asks_for_them(server, local, tmp_path, monkeypatch, capsys):
    for path in [path for path in server.objects if path.endswith(".index")]:
        del server.objects[path]
    local_shards, indices, cache = tmp_path / "local", tmp_path / "indices", tmp_path / "cache"
    for path in local_shards.glob("*.index"):
        path.unlink()
    url = f"{server.address}/web"
    options = ("--index-directory", indices, "--cache-directory", cache)
    assert launch("--index", local_shards, f"{local_shards}/shard-00000[01].tar", f"{url}/{SHARDS}", *options) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in said] == [
        "100 samples in 4 shards, all indexed",
        "41 samples in 2 shards, all indexed",
        "100 samples in 4 shards, all indexed",
    ]
    monkeypatch.setattr("nar_scale.data.shards.dataset_index.make_shard_index", None)  # nothing is left to build
    opened = DatasetIndex.open(local_shards, "*.tar", index_directory=indices, progress=False)
    remote = DatasetIndex.open(url, SHARDS, index_directory=indices, cache=ShardCache(cache, 10**7), progress=False)
    assert opened.fingerprint == remote.fingerprint == local.fingerprint
    assert launch("--index", url, *options) == 2
    assert_names(capsys.readouterr().err.strip(), url, "shard-{000000..000099}.tar")
    assert launch("--index", f"{url}/{SHARDS}") == 2
    assert_names(capsys.readouterr().err.strip(), url, "--cache-directory")


def test_a_data_set_that_is_elsewhere_is_described_and_evaluated(tmp_path):
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"document {number}")
    prepare([tmp_path / "corpus"], tmp_path / "data", seq_len=16, validation=0.5, workers=1, progress=False)
    torch.manual_seed(0)
    net = TransformerWrapper(num_tokens=257, max_seq_len=16, attn_layers=Decoder(dim=16, depth=1, heads=1))
    wrapper = AutoregressiveWrapper(net)
    cache = ShardCache(tmp_path / "cache", 10**7)
    with ObjectServer() as server:
        for file in (tmp_path / "data").rglob("*.*"):
            server.put(f"/data/{file.relative_to(tmp_path / 'data')}", file.read_bytes())
        url = f"{server.address}/data"
        there = evaluate_dataset(wrapper, url, 257, progress=False, cache=cache)
        described = inspect(url, progress=False, cache=cache)
    assert there == evaluate_dataset(wrapper, tmp_path / "data", 257, progress=False)
    patterns = ["train/shard-000000.tar", "validation/shard-000000.tar"]  # a web server lists nothing
    assert described.replace(url, str(tmp_path / "data")) == inspect(tmp_path / "data", patterns, progress=False)
    shard = tmp_path / "data" / "validation" / "shard-000000.tar"
    shard.rename(shard.with_name("shard-000007.tar"))
    with refused(DataError, tmp_path / "data" / "dataset.json", "validation/shard-000000.tar"):
        evaluate_dataset(wrapper, tmp_path / "data", 257, progress=False)
