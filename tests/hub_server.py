"""A model hub on 127.0.0.1, for tests: the calls a download makes, with ranges, and with faults on demand.

Large files are redirected to another origin (the same server by its other name), as the real hub hands them
to a CDN.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

PIECE = 4096  # bytes a write
SMALL = (
    200  # bytes; files below are kept in git, larger ones by their sha256, as the hub's .gitattributes decide
)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends a reset instead of an orderly end


@dataclass
class Repository:
    """One repository at one commit."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    token: str | None = None  # gated: only who sends this token gets files
    listed_sizes: dict[str, int] = field(default_factory=dict)  # where the listing shall lie

    def name_of(self, path: str) -> str:
        """The file's name in a cache: its hash."""
        content = self.files[path]
        if len(content) < SMALL:
            return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        return hashlib.sha256(content).hexdigest()

    def listing(self) -> list[dict]:
        entries = []
        for path, content in self.files.items():
            size = self.listed_sizes.get(path, len(content))
            entry = {"type": "file", "path": path, "size": size, "oid": self.name_of(path)}
            if len(content) >= SMALL:
                entry["oid"] = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
                entry["lfs"] = {"oid": self.name_of(path), "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries


@dataclass
class Faults:
    """What goes wrong, by path. Everything is used up or lasting, as said."""

    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Byte positions at which a transfer breaks, each once; every second one with a reset."""
    statuses: dict[str, list[int]] = field(default_factory=dict)  # answered instead, each once
    dead: set[str] = field(default_factory=set)  # every transfer breaks before its first byte, lasting
    altered: set[str] = field(default_factory=set)  # the first byte arrives inverted, lasting
    no_ranges: bool = False
    pause_s: float = 0.0  # before every piece


class HubServer(ThreadingHTTPServer):
    """Serves `repositories`, by "owner/name"; `requests` are (method, path, headers in lower case)."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.faults = Faults()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def bodies(self, path: str) -> int:
        """How many transfers of this file were begun."""
        return sum(method == "GET" and asked.endswith(f"/{path}") for method, asked, _ in self.requests)

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no error here."""


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[HubServer]:
    server = HubServer(repositories)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]
    routes: ClassVar = {
        r"/api/models/([^/]+/[^/]+)/revision/([^/]+)": "_about",
        r"/api/models/([^/]+/[^/]+)/tree/([^/]+)": "_tree",
        r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": "_resolve",
        r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)": "_body",
    }

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.requests.append((self.command, path, headers))
        for pattern, handler in self.routes.items():
            match = re.fullmatch(pattern, path)
            if match:
                name, revision, *rest = match.groups()
                repository = self.server.repositories.get(name)
                if repository is None:
                    return self._answer(404, {"X-Error-Code": "RepoNotFound"})
                if revision not in ("main", repository.commit):
                    return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
                return getattr(self, handler)(name, repository, *rest)
        return self._answer(404, {})

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what matters is in `requests`."""

    def _about(self, name: str, repository: Repository) -> None:
        self._answer(200, {}, json.dumps({"id": name, "sha": repository.commit, "siblings": []}).encode())

    def _tree(self, _: str, repository: Repository) -> None:
        self._answer(200, {}, json.dumps(repository.listing()).encode())

    def _resolve(self, name: str, repository: Repository, path: str) -> None:
        about = {"X-Repo-Commit": repository.commit}
        if path not in repository.files:
            return self._answer(404, about | {"X-Error-Code": "EntryNotFound"})
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            status = 403 if "Authorization" in self.headers else 401
            return self._answer(status, about | {"X-Error-Code": "GatedRepo"})
        content, etag = repository.files[path], repository.name_of(path)
        if len(content) < SMALL:
            return self._send(repository, path, about | {"ETag": f'"{etag}"'})
        size = repository.listed_sizes.get(path, len(content))
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        cdn = f"http://localhost:{self.server.server_port}/cdn/{name}/{repository.commit}/{path}"
        return self._answer(302, about | linked | {"Location": cdn})

    def _body(self, _: str, repository: Repository, path: str) -> None:
        self._send(repository, path, {"ETag": f'"{repository.name_of(path)}"'})

    def _send(self, repository: Repository, path: str, headers: dict[str, str]) -> None:
        """The file, or from where the client asks; as far as the faults let it."""
        faults, content = self.server.faults, repository.files[path]
        with self.server.lock:
            status = faults.statuses.get(path, []).pop(0) if faults.statuses.get(path) else None
        if status:
            return self._answer(status, {})
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and not faults.no_ranges else 0
        if path in faults.altered:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._head(206 if start else 200, headers, len(content) - start)
        if self.command == "HEAD":
            return None
        return self._transfer(content, start, self._next_cut(path, start))

    def _next_cut(self, path: str, start: int) -> int | None:
        if path in self.server.faults.dead:
            return start
        with self.server.lock:
            cuts = self.server.faults.cuts.get(path, [])
            ahead = [cut for cut in cuts if cut >= start]
            if not ahead:
                return None
            cuts.remove(min(ahead))
            return min(ahead)

    def _transfer(self, content: bytes, start: int, cut: int | None) -> None:
        end = len(content) if cut is None else cut
        for at in range(start, end, PIECE):
            time.sleep(self.server.faults.pause_s)
            self.wfile.write(content[at : min(at + PIECE, end)])
        if cut is not None:
            self.close_connection = True
            self.wfile.flush()
            if cut % 2:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self.connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self._head(status, headers, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
