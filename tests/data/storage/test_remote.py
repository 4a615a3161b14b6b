import sys
import threading

import pytest

from nar_scale.data.storage import object_stores, remote, retries
from nar_scale.data.storage.remote import find_remote, read_small
from nar_scale.data.storage.urls import is_remote, redacted
from nar_scale.errors import DataError, UserError
from tests.data.object_server import ObjectServer
from tests.errors import refused

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT", 2.0)
    with ObjectServer() as server:
        yield server


@pytest.fixture
def store(server):
    for name in ("train/a-0.tar", "train/a-1.tar", "train/b-0.tar", "train/a-0.tar.index", "train/deep/a-2.tar"):
        server.put(f"/bucket/{name}", name.encode())
    return {"endpoint_url": server.address, "key": "k", "secret": "s", "client_kwargs": {"region_name": "us-east-1"}}


def test_knows_urls_from_paths():
    for url in ("http://host/a", "https://host/a", "s3://bucket/a", "gs://bucket/a", "gcs://bucket/a", "S3://bucket/a"):
        assert is_remote(url)
    for path in ("a.tar", "/a/b.tar", "s3:/bucket", "https", "file:///a/b.tar", "a://b", ""):
        assert not is_remote(path)


def test_expands_braces_without_asking_the_server(server):
    base = f"{server.address}/train"
    assert find_remote(f"{base}/s-{{008..010}}.tar", {}) == [f"{base}/s-{i:03d}.tar" for i in (8, 9, 10)]
    assert find_remote(f"{base}/{{b,a,b}}.tar?version=1", {}) == [f"{base}/a.tar?version=1", f"{base}/b.tar?version=1"]
    assert find_remote("http://[::1]:80/a.tar", {}) == ["http://[::1]:80/a.tar"]
    assert find_remote("s3://bucket/{0..1}.tar", {}) == ["s3://bucket/0.tar", "s3://bucket/1.tar"]
    assert not server.gets


@pytest.mark.parametrize("pattern", ["*.tar", "shard-[01].tar", "{a,b}/*.tar"])
def test_a_web_server_cannot_be_listed(pattern):
    with refused(DataError, "http://host/", "shard-{000000..000099}.tar"):
        find_remote(f"http://host/{pattern}", {})


def test_unbalanced_braces():
    with refused(DataError, "http://host/{0..3.tar"):
        find_remote("http://host/{0..3.tar", {})


def test_lists_a_store(store):
    assert find_remote("s3://bucket/train/*.tar", store) == [
        f"s3://bucket/train/{name}.tar" for name in ("a-0", "a-1", "b-0")
    ]
    assert find_remote("s3://bucket/train/{b,a}-[0].tar", store) == [
        "s3://bucket/train/a-0.tar",
        "s3://bucket/train/b-0.tar",
    ]
    assert "s3://bucket/train/deep/a-2.tar" in find_remote("s3://bucket/**/*.tar", store)
    with refused(DataError, "s3://bucket/none/*.tar"):
        find_remote("s3://bucket/none/*.tar", store)


def test_reads_small_objects_of_a_store(server, store):
    assert read_small("s3://bucket/train/a-0.tar.index", store, 100) == b"train/a-0.tar.index"
    assert read_small("s3://bucket/train/none", store, 100) is None
    server.fail("/bucket/train/a-1.tar", 403)
    assert read_small("s3://bucket/train/a-1.tar", store, 100) is None


def test_reads_small_objects(server):
    url = server.put("/a.index", b"0123456789")
    assert read_small(url, {}, 10) == b"0123456789"
    assert read_small(server.put("/empty", b""), {}, 10) == b""
    assert read_small(url + ".none", {}, 10) is None
    with refused(DataError, url, 9):
        read_small(url, {}, 9)
    server.fail("/a.index", "unsized")
    with refused(DataError, url, 9):
        read_small(url, {}, 9)


def test_what_is_refused_is_not_there(server):
    url = server.put("/a.index", b"x")
    server.fail("/a.index", 403, 401, 410)
    assert [read_small(url, {}, 9) for _ in range(4)] == [None, None, None, b"x"]


def test_tries_again(server):
    url = server.put("/a.index", b"x" * 100_000)
    server.fail("/a.index", 503, "silent", "truncate", "reset")
    assert read_small(url, {}, 1 << 20) == b"x" * 100_000
    server.fail("/a.index", 500, lasting=True)
    with refused(DataError, url, 500, "5 of 5"):
        read_small(url, {}, 1 << 20)


def test_nobody_listens(server):
    with refused(DataError, "http://127.0.0.1:9/a", "5 of 5"):
        read_small("http://127.0.0.1:9/a", {}, 9)


def test_options_that_make_no_sense(store):
    with refused(DataError, "s3://bucket/train/a-0.tar", "data.storage_options"):
        read_small("s3://bucket/train/a-0.tar", {**store, "no_such_option": 1, "profile": "none"}, 100)


def test_options_reach_the_server(server):
    url = server.put("/a", b"x")
    assert read_small(url, {"client_kwargs": {"headers": {"Authorization": "Bearer 1"}}}, 9) == b"x"
    assert server.headers["/a"]["Authorization"] == "Bearer 1"
    assert server.headers["/a"]["Accept-Encoding"] == "identity"


def test_secrets_are_not_shown():
    assert redacted("https://me:secret@host:80/a.tar?signature=secret#x") == "https://host:80/a.tar?..."
    assert redacted("s3://bucket/a\x1b[1m.tar") == "s3://bucket/a\\x1b[1m.tar"


def test_says_which_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with refused(UserError, "http://host/a", "pip install 'nar_scale[remote]'"):
        read_small("http://host/a", {}, 9)


def test_says_which_package_is_missing_for_a_store(monkeypatch):
    monkeypatch.setattr(object_stores, "_kept", threading.local())
    monkeypatch.setitem(sys.modules, "aiobotocore.session", None)
    with refused(UserError, "s3://bucket/a", "pip install 'nar_scale[s3]'"):
        read_small("s3://bucket/a", {}, 9)


def test_leaves_no_thread_behind(server, store):
    url = server.put("/a", b"x")
    threads = set(threading.enumerate())
    read_small(url.replace("127.0.0.1", "localhost"), {}, 9)
    read_small("s3://bucket/train/a-0.tar", store, 99)
    find_remote("s3://bucket/train/*.tar", store)
    names = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not {name for name in names if "process_request_thread" not in name}, names


def test_works_where_a_loop_is_running(server):
    import asyncio

    url = server.put("/a", b"x")

    async def cell() -> bytes | None:
        return read_small(url, {}, 9)

    assert asyncio.run(cell()) == b"x"
