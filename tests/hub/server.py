"""A model hub on 127.0.0.1 in plain http.server: the few endpoints that huggingface_hub asks, and faults on demand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """One repository: its files by path, and the names that lead to its commit.

    token: needed to see it, where set. gated: seen, but not given to anybody.
    drop_after_bytes: the first GET of a path breaks off after so many bytes.
    """

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    token: str | None = None
    gated: bool = False
    drop_after_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            digest.update(path.encode() + b"\0" + content)
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """What the server holds, and the log of what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, sorted; a name appears once for each request."""
        paths = [r.path for r in self.requests if r.method == "GET" and "/resolve/" in r.path]
        return sorted(path.split("/resolve/")[1].partition("/")[2] for path in paths)


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: the requests are in Hub.requests."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        try:
            if path.startswith("/api/models/"):
                self._describe(path.removeprefix("/api/models/"), token)
            else:
                self._give(path.lstrip("/"), token)
        except _Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def _repo(self, name: str, revision: str, token: str | None) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.token and token != repo.token):
            # The real hub does not tell strangers which private repositories exist.
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in (*repo.revisions, repo.commit):
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo

    def _describe(self, rest: str, token: str | None) -> None:
        name, kind, revision = rest, "revision", "main"
        for word in ("revision", "tree"):
            if f"/{word}/" in rest:
                name, _, revision = rest.partition(f"/{word}/")
                kind = word
        repo = self._repo(name, revision, token)
        if kind == "tree":
            listing: object = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in repo.files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in repo.files]
            listing = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": []}
        self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _give(self, rest: str, token: str | None) -> None:
        name, _, revision_and_path = rest.partition("/resolve/")
        revision, _, path = revision_and_path.partition("/")
        repo = self._repo(name, revision, token)
        headers = {"X-Repo-Commit": repo.commit}
        if repo.gated:
            raise _Refused(403, "GatedRepo", f"Access to model {name} is restricted")
        if path not in repo.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        content = repo.files[path]
        headers |= {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and self.command == "GET":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers)
        else:
            cut = repo.drop_after_bytes.pop(path, None) if self.command == "GET" else None
            self._send(200, content, headers, cut=cut)

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve(repos: dict[str, Repo]) -> Iterator[Hub]:
    """A running hub; `hub.endpoint` is its address."""
    hub = Hub(repos)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
