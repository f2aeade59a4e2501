"""Servers on the loopback that fail on request: a proxy before an S3 server, files, and a hub.

`s3_server` is moto's S3; `Proxy` stands before it, `Files` serves a folder, and `Hub` keeps models
as the Hugging Face Hub does. Nothing leaves the machine, and every server takes a free port.
"""

import base64
import hashlib
import http.client
import json
import logging
import random
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import Request as Question
from urllib.request import urlopen

import fsspec
import zarr
from s3fs import S3FileSystem

REFUSALS = {  # status, and S3's code and message for it
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "limit": (429, "TooManyRequests", "Too many requests."),
    "unknown": (401, "Unauthorized", "Who are you?"),
    "forbidden": (403, "AccessDenied", "Access denied."),
}
BREAKS = ("drop", "cut", "stall")
HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}  # between two neighbours only


class Request(NamedTuple):
    """The head of a request as it came in, and the fault that it meets."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    fault: str | None = None


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Server(ThreadingTCPServer):
    """An HTTP server on a free port of the loopback, in threads, whose answers can go wrong.

    The faults: `error` (500), `throttle` (503 SlowDown), `limit` (429), `unknown` (401),
    `forbidden` (403), and `drop` (the connection is closed) come before the request is carried
    out; with `cut` it is carried out, and the connection closed within the body of the answer, or
    before an answer that has none; with `stall` the answer comes late.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    serving = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = "http://{}:{}".format(*self.server_address)
        self.lock = threading.Lock()
        self.faults()
        self.up()

    def server_close(self) -> None:
        self.down()
        super().server_close()

    def up(self) -> None:
        """Serve, again after `down`."""
        if self.serving:
            return
        self.serving = True
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Refuse every connection from now on; an open one is closed at its next request."""
        if not self.serving:
            return
        self.serving = False
        self.shutdown()
        self.socket.close()
        self.socket = socket.socket()  # bound, not listening: it refuses, and keeps the port
        self.server_bind()

    def faults(
        self,
        script: Iterable[str | None] = (),
        *,
        rate: float = 0.0,
        kinds: tuple[str, ...] = ("error", "throttle", "cut", "drop"),
        seed: int = 0,
        only: str = "",
        after: int | None = None,
        seconds: float = 0.5,
    ) -> None:
        """Set what goes wrong from now on (without arguments: nothing), and begin a new log.

        Requests whose "METHOD /path?query" begins with the pattern `only` meet the faults of the
        script in turn (None: none), and after its end one of `kinds` at the given rate. That draw
        depends on the seed, method, path, range, and how often just this was asked before: not on
        the order in which threads ask. A cut body ends `after` bytes, or half of it; a stall
        takes `seconds`.
        """
        script = tuple(script)
        unknown = {*script, *kinds} - {None, *REFUSALS, *BREAKS}
        if unknown:
            raise ValueError(f"expected faults of {[*REFUSALS, *BREAKS]}, got {sorted(unknown)}")
        with self.lock:
            self.log: list[Request] = []
            self.script: Iterator[str | None] = iter(script)
            self.rate, self.kinds, self.seed, self.only = rate, kinds, seed, re.compile(only)
            self.after, self.seconds = after, seconds
            self.asked: Counter[str] = Counter()

    @property
    def injected(self) -> Counter[str]:
        """How often each fault happened since `faults` was called."""
        return Counter(request.fault for request in self.log if request.fault)

    def meet(self, request: Request) -> Request:
        """Log a request, with the fault that it meets."""
        with self.lock:
            fault = None
            if self.only.match(f"{request.method} {request.path}"):
                place = request.path.partition("?")[0]  # an upload's id in the query is random
                key = f"{self.seed} {request.method} {place} {request.headers.get('range')}"
                self.asked[key] += 1
                chance = random.Random(f"{key} {self.asked[key]}")
                drawn = chance.choice(self.kinds) if chance.random() < self.rate else None
                fault = next(self.script, drawn)
            self.log.append(request._replace(fault=fault))
            return self.log[-1]

    def answer(self, request: Request, body: bytes) -> Answer:
        raise NotImplementedError

    def handle_error(self, *request: Any) -> None:
        """Print what goes wrong here; a client that hangs up does nothing wrong."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*request)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the head and the body are written apart
    server: Server

    def handle_any(self) -> None:
        body = self.read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        if not self.server.serving:
            self.close_connection = True
            return
        request = self.server.meet(Request(self.command, self.path, headers))
        if request.fault == "drop":
            self.close_connection = True
        elif request.fault in REFUSALS:
            status, code, message = REFUSALS[request.fault]
            xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self.send(Answer(status, {"content-type": "application/xml"}, xml.encode()))
        else:
            if request.fault == "stall":
                time.sleep(self.server.seconds)
            self.send(self.server.answer(request, body), cut=request.fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def send(self, answer: Answer, cut: bool = False) -> None:
        body = b"" if self.command == "HEAD" else answer.body
        self.close_connection |= cut
        if cut and not body:
            return
        self.send_response_only(answer.status)
        for name, value in ({"content-length": str(len(body))} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        after = len(body) // 2 if self.server.after is None else self.server.after
        self.wfile.write(body[:after] if cut else body)

    def log_message(self, *_: object) -> None:
        pass


class Proxy(Server):
    """Passes requests on to the server at a URL, and its answers back."""

    def __init__(self, url: str) -> None:
        self.behind = urlsplit(url).netloc
        super().__init__()

    def answer(self, request: Request, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.behind)
        headers = {k: v for k, v in request.headers.items() if k not in HOP}
        if body:
            headers["content-length"] = str(len(body))  # where the request came in chunks
        connection.request(request.method, request.path, body or None, headers)
        with connection.getresponse() as reply:
            content = reply.read()
            headers = {k.lower(): v for k, v in reply.getheaders() if k.lower() not in HOP}
        connection.close()
        return Answer(reply.status, headers, content)


class Files(Server):
    """Serves the files of a folder; `ranges = False` makes it a server that knows no ranges."""

    ranges = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__()

    def answer(self, request: Request, body: bytes) -> Answer:
        path = self.folder / unquote(urlsplit(request.path).path).lstrip("/")
        if not path.is_file():
            return Answer(404, {}, b"")
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if not (self.ranges and wanted):
            headers = {"accept-ranges": "bytes"} if self.ranges else {}
            return Answer(200, headers | {"content-length": str(len(content))}, content)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= stop:
            return Answer(416, {"content-range": f"bytes */{len(content)}"}, b"")
        place = {"content-range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return Answer(206, place | {"content-length": str(stop - start)}, content[start:stop])


class Hub(Server):
    """Keeps models as the Hugging Face Hub does: as much of its HTTP API as pushes and pulls ask.

    A repository is its commits, newest last, each a dict of all its files. Files are sent in the
    commit itself ("regular"), whatever their size, and every branch is "main".
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        super().__init__()

    def answer(self, request: Request, body: bytes) -> Answer:
        path = unquote(urlsplit(request.path).path)
        if path == "/api/validate-yaml":
            return self.json({"warnings": [], "errors": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)/([a-z]+)/([^/]+)/?(.*)", path)
        if not found or found[1] not in self.commits:
            return self.missing("RepoNotFound")
        name, what, revision, file = found.groups()
        if what == "preupload":
            asked = [{"path": each["path"]} for each in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.json({"files": [each | mode for each in asked]})
        if revision not in ("main", self.sha(name)):
            return self.missing("RevisionNotFound")
        match what:
            case "commit":
                return self.commit(name, body)
            case "revision":
                return self.json({"id": name, "sha": self.sha(name)})
            case "tree":
                files = self.commits[name][-1].items()
                kinds = [{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files]
                return self.json(kinds)
        content = self.commits[name][-1].get(file)
        if content is None:
            return self.missing("EntryNotFound")
        tag = hashlib.sha256(content).hexdigest()
        headers = {"x-repo-commit": self.sha(name), "etag": f'"{tag}"'}
        return Answer(200, headers | {"content-length": str(len(content))}, content)

    def create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.commits else 200
        self.commits.setdefault(name, [{}])
        self.private.setdefault(name, asked.get("visibility") == "private")
        return self.json({"url": f"{self.url}/{name}"}, status)

    def commit(self, name: str, body: bytes) -> Answer:
        files = [x["value"] for x in map(json.loads, body.splitlines()) if x["key"] == "file"]
        added = {file["path"]: base64.b64decode(file["content"]) for file in files}
        self.commits[name].append(self.commits[name][-1] | added)
        sha = self.sha(name)
        return self.json({"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha})

    def sha(self, name: str) -> str:
        return f"{len(self.commits[name]):040}"

    def json(self, content: Any, status: int = 200) -> Answer:
        return Answer(status, {"content-type": "application/json"}, json.dumps(content).encode())

    def missing(self, what: str) -> Answer:
        return Answer(404, {"x-error-code": what}, b"")


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 in threads of this process; yield its URL."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line per request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


def ask(method: str, url: str) -> bytes:
    """Send a bare request, past boto's clients."""
    with urlopen(Question(url, method=method)) as reply:
        return reply.read()


def close_s3fs() -> None:
    """Close and forget all S3 file systems, and so their listings.

    Each on its loop: s3fs itself leaves those of zarr open, and closes the others wherever they
    are collected.
    """
    for system in list(S3FileSystem._cache.values()):
        if system._s3 is not None and system.asynchronous:
            zarr.core.sync.sync(system._s3.close())
        elif system._s3 is not None:
            fsspec.asyn.sync(system.loop, system._s3.close)
    S3FileSystem.clear_instance_cache()
