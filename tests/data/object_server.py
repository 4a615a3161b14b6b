"""A web server and object store on this machine for tests, with faults on demand."""

import os
import socket
import struct
import threading
import time
from collections import Counter, defaultdict, deque
from email.message import Message
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

PIECES = 8  # in which a slow body is sent


class ObjectServer:
    """Serves what is in `objects`, from path to content, over HTTP, and as an S3 store whose buckets are folders.

    Faults: a status such as 503, "silent" (no answer), "stall" (half of the body, then nothing), "pause" (a stall of
    `pause` seconds, then the rest), "slow" (pieces `pause` apart), "reset", "truncate", "corrupt" (another content of
    the same length), "unsized" (no Content-Length), "html" (another content and length), or
    bytes (another content, truncated).

    Attributes:
        objects: content by path, such as "/train/shard.tar".
        gets: number of GET requests by path.
        headers: those of the last GET request by path.
        pause: seconds.
        waiting: how many requests stand still at the moment.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gets: Counter[str] = Counter()
        self.headers: dict[str, Message] = {}
        self.pause = 0.1
        self.waiting = 0
        self.faults: dict[str, deque[str | int | bytes]] = defaultdict(deque)
        self.lasting: dict[str, str | int | bytes] = {}
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "ObjectServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def put(self, path: str, content: bytes) -> str:
        """Store an object and return its URL."""
        self.objects[path] = content
        return self.address + quote(path)

    def fail(self, path: str, *faults: str | int | bytes, lasting: bool = False) -> None:
        """Let the next requests for a path go wrong, one fault each, or all of them in the same way."""
        if lasting:
            self.lasting[path] = faults[0]
        else:
            self.faults[path].extend(faults)

    def next_fault(self, path: str) -> str | int | bytes | None:
        """The fault of this request."""
        with self.lock:
            self.gets[path] += 1
            return self.faults[path].popleft() if self.faults[path] else self.lasting.get(path)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    store: ObjectServer

    def handle_error(self, *_: object) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def store(self) -> ObjectServer:
        assert isinstance(self.server, _Server)
        return self.server.store

    def do_HEAD(self) -> None:
        content = self.store.objects.get(unquote(urlsplit(self.path).path))
        self._send_head(404 if content is None else 200, len(content or b""))

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "list-type" in query:
            self._list(path.strip("/"), query)
            return
        self.store.headers[path] = self.headers
        fault = self.store.next_fault(path)
        content = self.store.objects.get(path)
        if fault is None and content is None:
            fault = 404
        if isinstance(fault, int):
            self._send_head(fault, 0)
        elif fault == "silent":
            self._stand_still()
        else:
            assert content is not None
            self._send(content, fault)

    def _send(self, content: bytes, fault: str | bytes | None) -> None:
        if isinstance(fault, bytes):
            content, fault = fault, "truncate"
        half = len(content) // 2
        if fault == "corrupt":
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        if fault == "html":
            content = b"<html>Please log in</html>"
        self._send_head(200, None if fault == "unsized" else len(content))
        if fault in (None, "corrupt", "html", "unsized"):
            self.wfile.write(content)
        elif fault == "slow":
            step = -(-len(content) // PIECES)
            for start in range(0, len(content), step):
                self.wfile.write(content[start : start + step])
                time.sleep(self.store.pause)
        else:
            self.wfile.write(content[:half])
            if fault == "stall":
                self._stand_still()
            elif fault == "pause":
                self._stand_still(self.store.pause)
                self.wfile.write(content[half:])
            elif fault == "reset":
                self._reset()
            else:
                assert fault == "truncate", fault
                self.close_connection = True

    def _send_head(self, status: int, size: int | None) -> None:
        self.send_response(status)
        if size is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _stand_still(self, seconds: float | None = None) -> None:
        with self.store.lock:
            self.store.waiting += 1
        self.store.stopping.wait(seconds)
        with self.store.lock:
            self.store.waiting -= 1
        if seconds is None:
            self.close_connection = True

    def _reset(self) -> None:
        self.close_connection = True
        time.sleep(0.05)  # or the client would not see the first half
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        keys = sorted(path[len(bucket) + 2 :] for path in self.store.objects if fnmatchcase(path, f"/{bucket}/*"))
        lines, folders = [], set()
        for key in keys:
            if not key.startswith(prefix):
                continue
            folder, found, _ = key[len(prefix) :].partition(delimiter or "\0")
            if found:
                folders.add(prefix + folder + delimiter)
            else:
                size = len(self.store.objects[f"/{bucket}/{key}"])
                lines.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>x</ETag>"
                    "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        lines += [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(lines)}</ListBucketResult>".encode()
        self._send_head(200, len(body))
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
