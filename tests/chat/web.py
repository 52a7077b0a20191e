"""A web server of our own on this machine, with every behaviour that a download must survive."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


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

    def answer_to(self) -> None:
        """/to?ADDRESS: a redirect there, with more of a body than anybody should read."""
        self.send_response(302)
        self.send_header("Location", urllib.parse.unquote(self.path.partition("?")[2]))
        self.end_headers()
        for _ in range(10_000):
            self.wfile.write(b"x" * 1000)

    def answer_nowhere(self) -> None:
        self.reply(b"", 302)

    def answer_asked(self) -> None:
        """What the request said of itself."""
        self.reply(repr((self.headers["Host"], self.path, sorted(name.lower() for name in self.headers))).encode())

    def answer_slow_header(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
        for _ in range(1000):
            self.wfile.write(b"x")
            time.sleep(0.02)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client went away, as it should
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a running server."""
    httpd = ThreadingHTTPServer((host, 0), Handler)
    httpd.daemon_threads = True
    if context is not None:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield int(httpd.server_address[1])
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
