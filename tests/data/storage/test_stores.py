"""The protocols of object stores, spoken to servers that others have written: S3 and Google Cloud Storage."""

import urllib.request
from itertools import islice

import boto3
import pytest
import torch
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

from nar_scale.data import DatasetIndex, SampleFormat, SampleOrder, ShardCache, TokenStream
from nar_scale.data.storage.remote import find_remote, read_small
from nar_scale.errors import DataError
from tests.data.shard_files import numbered_index
from tests.errors import refused

ODD_NAME = "ä +%20&.tar"


def s3():
    """Start a server; return how to stop it, how to put an object into its bucket, and the options to reach it."""
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    return store.stop, lambda name, content: client.put_object(Bucket="bucket", Key=name, Body=content), options


def gs():
    """As `s3`."""
    store = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    store.start()
    host, port = store._api._httpd.socket.getsockname()
    address = f"http://{host}:{port}"

    def put(name, content):
        url = f"{address}/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.request.quote(name, safe='')}"
        urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": "application/x-tar"}))

    return store.stop, put, {"endpoint_url": address, "token": "anon"}


@pytest.fixture(scope="module", params=[s3, gs], ids=["s3", "gs"])
def store(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        stop, put, options = request.param()
        yield request.param.__name__, put, options
        stop()


def test_the_stream_over_a_store_is_that_over_local_shards(store, tmp_path):
    scheme, put, options = store
    (tmp_path / "local").mkdir()
    local = numbered_index(tmp_path / "local", [40, 1, 25, 34])
    for file in sorted((tmp_path / "local").iterdir())[:-1]:  # one index is left to be built
        put(f"web/{file.name}", file.read_bytes())
    cache = ShardCache(tmp_path / "cache", 10**7, options)
    there = DatasetIndex.open(f"{scheme}://bucket/web", "*.tar", cache=cache, progress=False)
    assert there.fingerprint == local.fingerprint

    def tokens(index):
        stream = TokenStream(
            index,
            SampleOrder(index.counts, 0, 2),
            SampleFormat(2, 200),
            global_batch_size=20,
            micro_batch_size=5,
            rank=0,
            world_size=1,
            workers=0,
        )
        return torch.cat([batch.tokens for batch in islice(stream, 40)])

    assert torch.equal(tokens(there), tokens(local))


def test_objects_are_listed_read_and_missed(store):
    scheme, put, options = store
    names = [ODD_NAME, "deep/b.tar", "a.tar.index"]
    for name in names:
        put(f"train/{name}", name.encode())
    base = f"{scheme}://bucket/train"
    assert find_remote(f"{base}/*.tar", options) == [f"{base}/{ODD_NAME}"]
    assert find_remote(f"{base}/**/*.tar", options) == [f"{base}/deep/b.tar", f"{base}/{ODD_NAME}"]
    assert [read_small(f"{base}/{name}", options, 100) for name in names] == [name.encode() for name in names]
    assert read_small(f"{base}/none", options, 100) is None
    with refused(DataError, f"{scheme}://bucket/none/*.tar"):
        find_remote(f"{scheme}://bucket/none/*.tar", options)
