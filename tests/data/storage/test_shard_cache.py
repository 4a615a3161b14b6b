import asyncio
import contextlib
import errno
import fcntl
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from hashlib import blake2b
from pathlib import Path

import pytest

from nar_scale.data.storage import retries
from nar_scale.data.storage.errors import ObjectMissing, ObjectRefused
from nar_scale.data.storage.shard_cache import CacheFull, ShardCache
from nar_scale.errors import DataError
from tests.data.object_server import ObjectServer
from tests.errors import refused

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

SIZE = 200_000
SILENCE = ("silent", "stall")
FAULTS = (*SILENCE, "reset", "truncate", 500, 502, 503, 429)
fork = multiprocessing.get_context("fork")


def content(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    with ObjectServer() as server:
        yield server


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache", 10 * SIZE, timeout=30)


def read(cache: ShardCache, *wanted) -> bytes:
    with contextlib.closing(cache.open(*wanted)) as shard:
        return os.pread(shard.descriptor, 1 << 30, 0)


def names(cache: ShardCache) -> list[str]:
    return sorted(name.partition("-")[2].partition("-")[2] or name for name in os.listdir(cache.directory))


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def start(function, *arguments):
    process = fork.Process(target=function, args=arguments)
    process.start()
    return process


def join(*processes) -> list[int | None]:
    for process in processes:
        process.join(30)
    return [process.exitcode for process in processes]


# one process


def test_fetches_once(server, cache):
    data = content(0)
    url = server.put("/train/shard 0.tar", data)
    for wanted in [(url,), (url, SIZE), (url, SIZE, digest(data)), (url, None, digest(data))]:
        shard = cache.open(*wanted)
        assert os.pread(shard.descriptor, 2 * SIZE, 0) == data == shard.path.read_bytes()
        assert fcntl.fcntl(shard.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(shard.descriptor)
        shard.close()
        shard.close()
        assert shard.descriptor == -1
    assert sum(server.gets.values()) == 1
    assert names(cache) == ["shard_200.tar"]


def test_shards_of_the_same_name_are_told_apart(server, cache):
    urls = [server.put(f"/{folder}/shard.tar", folder.encode()) for folder in ("a", "b", "c")]
    assert [read(cache, url) for url in urls] == [b"a", b"b", b"c"]
    assert names(cache) == ["shard.tar"] * 3


def test_names_that_no_file_can_have(server, cache):
    paths = ["/" + "ä:\n" * 300 + ".tar", "/folder/", "/..a\0.tar"]
    for path in paths:
        assert read(cache, server.put(path, path.encode()) + "?version=1") == path.encode()
    assert max(map(len, names(cache))) == 100


def test_an_empty_shard(server, cache):
    url = server.put("/empty.tar", b"")
    assert read(cache, url) == read(cache, url, 0, digest(b"")) == b""


@pytest.mark.parametrize(
    ("fault", "sized"),
    [("html", True), *((fault, True) for fault in FAULTS), *((fault, False) for fault in FAULTS)],
)
def test_recovers(server, cache, fault, sized):
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", fault, fault)
    if fault in SILENCE:
        cache.timeout = 2
    assert read(cache, url, *([SIZE, digest(data)] if sized else [])) == data
    assert server.gets["/a.tar"] == 3
    assert names(cache) == ["a.tar"]


def test_recovers_from_wrong_content(server, cache):
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", "corrupt")
    assert read(cache, url, SIZE, digest(data)) == data


def test_recovers_from_one_fault_after_another(server, cache):
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", "stall", 503, "corrupt", "reset")
    cache.timeout = 2
    assert read(cache, url, SIZE, digest(data)) == data
    assert server.gets["/a.tar"] == 5


@pytest.mark.parametrize("fault", ["pause", "slow"])
def test_slow_is_not_stalled(server, cache, fault):
    data = content(2)
    url = server.put("/a.tar", data)
    cache.timeout, server.pause = 3, 0.5
    server.fail("/a.tar", fault)
    assert read(cache, url, SIZE, digest(data)) == data
    assert server.gets["/a.tar"] == 1


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("silent", (0.2,)),
        ("stall", (0.2,)),
        ("reset", ()),
        ("truncate", ()),
        (500, (500,)),
        (503, (503,)),
        (429, (429,)),
    ],
)
def test_gives_up_after_the_attempts(server, tmp_path, fault, named):
    cache = ShardCache(tmp_path, 10 * SIZE, attempts=3, timeout=0.2 if fault in SILENCE else 30)
    url = server.put("/a.tar", content(1))
    server.fail("/a.tar", fault, lasting=True)
    with refused(DataError, url, "3 of 3", *named):
        cache.open(url, SIZE)
    assert server.gets["/a.tar"] == 3
    assert names(cache) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, ObjectMissing), (410, ObjectMissing), (403, ObjectRefused), (401, ObjectRefused), (400, DataError)],
)
def test_does_not_insist(server, cache, status, kind):
    url = server.put("/a.tar", content(1))
    server.fail("/a.tar", status, lasting=True)
    with refused(kind, url, status) as raised:
        cache.open(url)
    assert raised.type is kind
    assert server.gets["/a.tar"] == 1
    assert names(cache) == []


def test_a_changed_shard_is_an_error(server, cache):
    data = content(1)
    url = server.put("/a.tar", data)
    with refused(DataError, url):
        cache.open(url, SIZE, "0" * 32)
    assert server.gets["/a.tar"] == 2, "twice the same is no accident"
    with refused(DataError, url, 5, SIZE):
        cache.open(url, 5, digest(data))
    server.fail("/a.tar", "unsized", lasting=True)
    for size, named in [(5, (5,)), (SIZE + 1, (SIZE, SIZE + 1))]:
        with refused(DataError, url, *named):
            cache.open(url, size, digest(data))
    assert names(cache) == []


def test_a_server_that_tells_no_size(server, cache):
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", "unsized", "unsized")
    with refused(DataError, url, "index"):
        cache.open(url)
    assert read(cache, url, SIZE) == data


def test_copies_of_other_versions_are_not_taken(server, cache):
    old, new = content(1), content(2)
    url = server.put("/a.tar", old)
    assert read(cache, url, SIZE, digest(old)) == old
    server.put("/a.tar", new)
    assert read(cache, url, SIZE, digest(new)) == new
    assert read(cache, url) == new, "the newest"
    server.put("/a.tar", new[:-1])
    assert read(cache, url, SIZE - 1) == new[:-1]
    assert read(cache, url, SIZE, digest(old)) == old, "still there"
    assert server.gets["/a.tar"] == 3


def test_a_copy_that_was_cut_is_fetched_again(server, cache):
    data = content(1)
    url = server.put("/a.tar", data)
    with contextlib.closing(cache.open(url, SIZE, digest(data))) as shard:
        os.truncate(shard.path, 10)
        assert read(cache, url, SIZE, digest(data)) == data
    assert names(cache) == ["a.tar"]


def test_what_is_no_digest(cache):
    with refused(DataError, "http://host/a.tar", "../../../tmp"):
        cache.open("http://host/a.tar", 1, "../../../tmp")


# room


def test_the_least_recently_used_goes_first(server, tmp_path):
    cache = ShardCache(tmp_path, 3 * SIZE)
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(5)]
    (tmp_path / "notes.txt").write_bytes(bytes(10 * SIZE))
    for url in [*urls[:3], urls[0]]:
        read(cache, url, SIZE)
        time.sleep(0.01)
    read(cache, urls[3], SIZE)
    assert names(cache) == ["0.tar", "2.tar", "3.tar", "notes.txt"]
    read(cache, urls[4])
    assert names(cache) == ["0.tar", "3.tar", "4.tar", "notes.txt"]


def test_to_open_a_copy_does_not_look_like_a_change(server, cache):
    url = server.put("/a.tar", content(1))
    with contextlib.closing(cache.open(url)) as shard:
        before = shard.path.stat()
        cache.open(url).close()
        after = shard.path.stat()
    assert before.st_mtime_ns == after.st_mtime_ns
    assert before.st_atime_ns < after.st_atime_ns


def test_what_is_in_use_stays(server, tmp_path):
    cache = ShardCache(tmp_path, 2 * SIZE + 10)
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(3)]
    held = [cache.open(url) for url in urls[:2]]
    with refused(CacheFull, urls[2], SIZE, 2 * SIZE + 10, "data.cache_gib", "data.shuffle_window"):
        cache.open(urls[2], SIZE)
    assert server.gets["/2.tar"] == 0
    with pytest.raises(CacheFull):
        cache.open(urls[2])
    assert names(cache) == ["0.tar", "1.tar"]
    held[0].close()
    assert read(cache, urls[2]) == content(2)
    assert names(cache) == ["1.tar", "2.tar"]


def test_a_shard_larger_than_the_cache(server, tmp_path):
    cache = ShardCache(tmp_path, SIZE - 1)
    url = server.put("/a.tar", content(1))
    for size in (SIZE, None):
        with refused(DataError, url, SIZE, SIZE - 1, "data.cache_gib"):
            cache.open(url, size)
    assert server.gets["/a.tar"] == 1
    assert names(cache) == []


@pytest.mark.parametrize(("before", "now"), [(100, SIZE), (SIZE, 100)])
def test_a_shard_that_changes_between_attempts(server, cache, before, now):
    url = server.put("/a.tar", content(2, now))
    server.fail("/a.tar", content(1, before))
    assert read(cache, url) == content(2, now)
    assert server.gets["/a.tar"] == 2


def test_a_full_disk(server, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    url = server.put("/a.tar", content(1))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with refused(DataError, cache.directory, os.strerror(errno.ENOSPC), "data.cache_directory", "data.cache_gib"):
        cache.open(url, SIZE)
    assert names(cache) == []
    monkeypatch.undo()
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(os, "fsync", full)
    with refused(DataError, cache.directory, os.strerror(errno.ENOSPC)):
        cache.open(url, SIZE)
    assert names(cache) == []


def test_a_directory_that_cannot_be_used(server, tmp_path):
    url = server.put("/a.tar", content(1))
    (tmp_path / "file").touch()
    with refused(DataError, tmp_path / "file", "data.cache_directory"):
        ShardCache(tmp_path / "file", SIZE).open(url)
    if os.geteuid():
        (tmp_path / "readonly").mkdir(mode=0o500)
        with refused(DataError, tmp_path / "readonly", os.strerror(errno.EACCES), "data.cache_directory"):
            ShardCache(tmp_path / "readonly", SIZE).open(url)


def test_a_copy_removed_while_it_is_opened(server, cache, monkeypatch):
    data = content(1)
    url = server.put("/a.tar", data)
    path = cache.open(url).path
    lock = fcntl.flock

    def remove_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with contextlib.closing(cache.open(url)) as shard:
        assert shard.path.read_bytes() == data
    assert server.gets["/a.tar"] == 2


# several processes


def _expect(cache: ShardCache, url: str, data: bytes, barrier, *wanted) -> None:
    barrier.wait()
    with contextlib.closing(cache.open(url, *wanted)) as shard:
        assert os.pread(shard.descriptor, 1 << 30, 0) == data


@pytest.mark.parametrize("with_digest", [True, False])
def test_one_fetches_for_all(server, cache, with_digest):
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", "slow")
    server.pause = 0.05
    barrier = fork.Barrier(8)
    wanted = (SIZE, digest(data)) if with_digest else ()
    assert join(*(start(_expect, cache, url, data, barrier, *wanted) for _ in range(8))) == [0] * 8
    assert server.gets["/a.tar"] == 1
    assert names(cache) == ["a.tar"]


def test_threads_share_too(server, cache):
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", "slow")
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read(cache, url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 4
    assert server.gets["/a.tar"] == 1


def test_killed_while_fetching(server, tmp_path):
    cache = ShardCache(tmp_path, 2 * SIZE, timeout=30)
    data = content(1)
    url = server.put("/a.tar", data)
    server.fail("/a.tar", "stall")
    process = start(read, cache, url, SIZE)
    wait_for(lambda: server.waiting == 1)
    waiting = [start(_expect, cache, url, data, fork.Barrier(1)) for _ in range(3)]
    time.sleep(0.1)
    assert len([name for name in names(cache) if name.endswith((".part", ".lock"))]) == 2
    os.kill(process.pid, signal.SIGKILL)
    assert join(process, *waiting) == [-signal.SIGKILL, 0, 0, 0]
    assert server.gets["/a.tar"] == 2
    assert names(cache) == ["a.tar"]


def test_what_the_killed_leave_is_removed(server, tmp_path):
    cache = ShardCache(tmp_path, 2 * SIZE, timeout=30)
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(3)]
    for i in range(2):
        server.fail(f"/{i}.tar", "stall")
    processes = [start(read, cache, url, SIZE) for url in urls[:2]]
    wait_for(lambda: server.waiting == 2)
    with pytest.raises(CacheFull):
        cache.open(urls[2], SIZE)
    os.kill(processes[0].pid, signal.SIGKILL)
    join(processes[0])
    assert read(cache, urls[2], SIZE) == content(2)
    assert len(names(cache)) == 3, "the other is still fetching"
    os.kill(processes[1].pid, signal.SIGKILL)
    join(processes[1])
    assert read(cache, urls[0], SIZE) == content(0)
    assert names(cache) == ["0.tar", "2.tar"]


def _use(cache: ShardCache, urls: list[str], sizes: list[int], seed: int) -> None:
    draw = random.Random(seed)
    held: list = []
    for _ in range(20):
        number = draw.randrange(len(urls))
        while True:
            try:
                held.append((number, cache.open(urls[number], draw.choice([None, sizes[number]]))))
                break
            except CacheFull:
                if held:
                    held.pop(0)[1].close()
                else:
                    time.sleep(0.002)
        for held_number, shard in held:
            assert os.path.samestat(os.fstat(shard.descriptor), shard.path.stat()), "removed while in use"
            assert os.pread(shard.descriptor, 1 << 30, 0) == content(held_number, sizes[held_number])
        while len(held) > draw.randrange(1, 3):
            held.pop(0)[1].close()
    for _, shard in held:
        shard.close()


def test_never_more_than_allowed(server, tmp_path):
    sizes = [20_000 + 3_000 * number for number in range(12)]
    cache = ShardCache(tmp_path, 4 * max(sizes), timeout=10)
    urls = [server.put(f"/{number}.tar", content(number, size)) for number, size in enumerate(sizes)]
    for number in range(len(urls)):
        server.fail(f"/{number}.tar", *random.Random(number).choices(["reset", "truncate", 503, "slow"], k=2))
    server.pause = 0.01
    processes = [start(_use, cache, urls, sizes, seed) for seed in range(4)]
    totals = []
    descriptor = os.open(tmp_path, os.O_RDONLY)
    while any(process.is_alive() for process in processes):
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # or a file could be counted under its old and its new name
        total = 0
        for name in os.listdir(tmp_path):
            with contextlib.suppress(FileNotFoundError):
                total += (tmp_path / name).stat().st_size
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        totals.append(total)
        time.sleep(0.001)
    os.close(descriptor)
    assert join(*processes) == [0] * 4
    assert cache.max_bytes / 2 < max(totals) <= cache.max_bytes
    assert len(totals) > 50
    assert not [name for name in names(cache) if name.startswith(".")]


def _fail_unless_held(cache: ShardCache, shard, urls: list[str]) -> None:
    shard.close()  # the child's own descriptor alone
    with contextlib.suppress(CacheFull):
        cache.open(urls[1])
        os._exit(1)


def test_a_child_does_not_let_go_for_its_parent(server, tmp_path):
    cache = ShardCache(tmp_path, SIZE)
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(2)]
    with contextlib.closing(cache.open(urls[0])) as shard:
        assert join(start(_fail_unless_held, cache, shard, urls)) == [0]
        assert names(cache) == ["0.tar"]


def test_a_child_does_not_keep_what_its_parent_has_closed(server, tmp_path):
    cache = ShardCache(tmp_path, SIZE)
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(2)]
    shard = cache.open(urls[0])
    process = start(time.sleep, 60)
    shard.close()
    assert read(cache, urls[1]) == content(1)
    process.kill()
    join(process)


def _fork_and_read(cache: ShardCache, urls: list[str]) -> None:
    assert read(cache, urls[1]) == content(1)
    child = start(read, cache, urls[2])
    assert join(child) == [0]


def test_works_after_fork_and_pickling(server, cache):
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(4)]
    assert read(cache, urls[0]) == content(0)
    assert join(start(_fork_and_read, cache, urls)) == [0]
    assert read(pickle.loads(pickle.dumps(cache)), urls[3]) == content(3)
    assert names(cache) == ["0.tar", "1.tar", "2.tar", "3.tar"]


def test_works_when_forked_in_the_middle_of_a_fetch(server, cache):
    urls = [server.put(f"/{i}.tar", content(i)) for i in range(2)]
    cache.timeout, server.pause = 10, 0.7
    server.fail("/0.tar", "pause")
    thread = threading.Thread(target=read, args=(cache, urls[0]))
    thread.start()
    wait_for(lambda: server.waiting == 1)
    sleeper = start(time.sleep, 60)  # has inherited the lock
    waiting = start(read, cache, urls[0])
    assert join(start(read, cache, urls[1]), waiting) == [0, 0]
    thread.join()
    sleeper.kill()
    join(sleeper)
    assert server.gets["/0.tar"] == 1


def test_works_where_a_loop_is_running(server, cache):
    url = server.put("/a.tar", content(1))

    async def cell() -> bytes:
        return read(cache, url)

    assert asyncio.run(cell()) == content(1)


def test_a_process_ends_when_it_is_done(server, tmp_path):
    url = server.put("/a.tar", content(1))
    script = f"""from nar_scale.data.storage.shard_cache import ShardCache
shard = ShardCache({str(tmp_path)!r}, 10**9).open({url!r})"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=Path.cwd())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names(ShardCache(tmp_path, SIZE)) == ["a.tar"]


def test_fetches_from_a_store(server, cache):
    data = content(1)
    server.put("/bucket/train/a.tar", data)
    options = {"endpoint_url": server.address, "key": "k", "secret": "s"}
    cache = ShardCache(cache.directory, cache.max_bytes, options, timeout=2)
    server.fail("/bucket/train/a.tar", "stall", "truncate", "reset", "corrupt")
    assert read(cache, "s3://bucket/train/a.tar", SIZE, digest(data)) == data
    with refused(ObjectMissing, "s3://bucket/train/b.tar", 404):
        cache.open("s3://bucket/train/b.tar")
    server.fail("/bucket/train/b.tar", 403, lasting=True)
    with refused(ObjectRefused, "s3://bucket/train/b.tar", 403):
        cache.open("s3://bucket/train/b.tar")
