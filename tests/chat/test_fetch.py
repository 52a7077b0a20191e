"""Pictures over http, from a server of our own on this machine."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from behold.chat.fetch import fetch
from behold.chat.media import MediaPolicy, load_image
from behold.errors import MediaError


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), (1, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


class Handler(BaseHTTPRequestHandler):
    """Behaviours by path; no path touches the disk."""

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].strip("/")
        getattr(self, f"answer_{name.replace('.', '_').split('/')[0]}", self.answer_missing)()

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for header, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def answer_picture_png(self) -> None:
        self.reply(PNG)

    def answer_agent(self) -> None:
        self.reply(self.headers["User-Agent"].encode())

    def answer_missing(self) -> None:
        self.reply(b"nothing", 404)

    def answer_page(self) -> None:
        self.reply(b"<html>a login page</html>")

    def answer_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(10_000):
            self.wfile.write(b"x" * 1000)

    def answer_huge(self) -> None:
        self.reply(b"x", Content_Length=str(10**12))

    def answer_short(self) -> None:
        self.reply(PNG[:30], Content_Length=str(len(PNG)))
        self.close_connection = True

    def answer_slow(self) -> None:
        self.send_response(200)
        self.end_headers()
        for byte in PNG * 100:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.02)

    def answer_silent(self) -> None:
        time.sleep(1)

    def answer_once(self) -> None:
        self.reply(b"", 302, Location="/picture.png")

    def answer_loop(self) -> None:
        self.reply(b"", 302, Location=f"{self.path}/again")  # a new address each time: only the count can stop it

    def answer_to_file(self) -> None:
        self.reply(b"", 302, Location="file:///etc/passwd")

    def answer_to_data(self) -> None:
        self.reply(b"", 302, Location="data:image/png;base64,AAAA")

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away, as it should
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a running server."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_a_picture(server: str) -> None:
    assert load_image(f"{server}/picture.png").size == (5, 3)
    assert load_image(f"HTTP{server[4:]}/picture.png?size=große bilder").size == (5, 3)


def test_servers_learn_who_asks(server: str) -> None:
    assert fetch(f"{server}/agent", MediaPolicy()).startswith(b"behold/")


def test_a_redirect_is_followed(server: str) -> None:
    assert load_image(f"{server}/once").size == (5, 3)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("missing", "404"),
        ("page", "web page"),
        ("endless", "more than 100000 bytes"),
        ("huge", "1000000000000 bytes"),
        ("short", "broke off after 30 of"),
        ("slow", "longer than 0.3 s"),
        ("silent", "longer than 0.3 s"),
        ("loop", "more than 5 times"),
        ("to.file", "'file:///etc/passwd' is not allowed"),
        ("to.data", "'data:image/png;base64,AAAA' is not allowed"),
    ],
)
def test_what_can_go_wrong(server: str, path: str, word: str) -> None:
    with pytest.raises(MediaError, match=word):
        load_image(f"{server}/{path}", policy=MediaPolicy(max_bytes=100_000, timeout_s=0.3))


def test_no_redirect_where_none_is_allowed(server: str) -> None:
    with pytest.raises(MediaError, match="more than 0 times"):
        load_image(f"{server}/once", policy=MediaPolicy(max_redirects=0))


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///a.png", "http://[::1/a.png", "http://host:port/a.png", "http://a b/c.png", "http:a.png"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(MediaError):
        load_image(url)


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(MediaError, match="check the address and the network"):
        load_image(f"http://127.0.0.1:{port}/a.png")
