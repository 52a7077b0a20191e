"""The chat page's files: what is served at `/` and `/page/`, to whom, and how it is locked down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import behold.api.server.page
from behold.api.vlm import VLM
from tests.server.running import running

FOLDER = Path(behold.api.server.page.__file__).parent
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".js", ".css", ".svg"))
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@pytest.fixture(scope="module")
def client(vlm: VLM) -> Iterator[httpx.Client]:
    """A server that asks for a key, and a client that has none."""
    with running(vlm, api_keys=("secret",)) as (found, _):
        yield found


def test_the_page_needs_no_key_and_the_api_does(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/v1/models").status_code == 401
    assert client.post("/v1/behold/look", json={"messages": []}).status_code == 401


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_served_as_what_it_is(client: httpx.Client, path: Path) -> None:
    response = client.get(f"/page/{path.name}")
    assert response.content == path.read_bytes()
    assert response.headers["content-type"].partition(";")[0] == TYPES[path.suffix]


@pytest.mark.parametrize("name", ["page.py", "__init__.py", "%2e%2e/app.py", "..%2fapp.py", "nothing.js", ""])
def test_nothing_else_is_served(client: httpx.Client, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_headers_lock_it_down(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data: blob:;")
    assert "unsafe" not in policy and "*" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_a_known_file_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/page/main.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    stale = client.get("/page/main.js", headers={"if-none-match": '"another"'})
    assert stale.status_code == 200


def test_it_can_be_asked_for_its_head(client: httpx.Client) -> None:
    assert client.head("/").status_code == 200


def test_it_names_no_other_server_and_has_no_code_inline() -> None:
    """No font, script or picture from elsewhere; a namespace in the icon is a name and no address to fetch."""
    for path in [*FILES, FOLDER / "index.html"]:
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.findall(r"https?://|//[a-z0-9-]+\.[a-z]{2,}", text), path.name
    page = (FOLDER / "index.html").read_text("utf-8")
    assert not re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", page)


def test_no_script_turns_text_into_markup() -> None:
    for path in FILES:
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text("utf-8"))


def test_it_stays_light(client: httpx.Client) -> None:
    """The whole page, uncompressed, in bytes."""
    assert sum(path.stat().st_size for path in [*FILES, FOLDER / "index.html"]) < 80_000
