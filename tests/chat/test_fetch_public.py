"""Pictures by URL for strangers: nothing but the public internet can be reached, however it is written or resolved.

Servers of our own stand in for the internet: 127.0.0.1 passes for public here, and 127.0.0.2 for an inner address.
"""

from __future__ import annotations

import ast
import contextlib
import ipaddress
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from behold.chat import addresses
from behold.chat.addresses import Target, is_public
from behold.chat.fetch import fetch
from behold.chat.media import load_image
from behold.chat.policy import MediaPolicy
from behold.errors import MediaError
from tests.chat.web import PNG, closed_port, serving

PUBLIC, INNER = "127.0.0.1", "127.0.0.2"
OPEN = MediaPolicy.for_server(allow_urls=True, timeout_s=5)
Resolver = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(PUBLIC) as number:
        yield number


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names and what they resolve to; each look-up of a name with several lists in "then" takes the next one."""
    known: dict[str, list[str]] = {
        "pictures.example": [PUBLIC],
        "inner.example": [INNER],
        "mixed.example": [PUBLIC, INNER],
    }

    def look_up(host: str, port: int, *_: object, **__: object) -> list[tuple[Any, ...]]:
        look_ups.append(host)
        found = [host] if host[:1].isdigit() else known.get(host)
        if found is None:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    look_ups: list[str] = known.setdefault("look-ups", [])
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses, "is_public", lambda address: str(address) == PUBLIC)
    return known


def refusal(url: str, policy: MediaPolicy = OPEN) -> str:
    with pytest.raises(MediaError) as caught:
        load_image(url, policy=policy)
    return str(caught.value)


# --- which addresses are public ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.0.1"),
        *("169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.9", "192.0.0.192", "192.0.2.1"),
        *("192.168.1.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1"),
        *("240.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "100::1", "5f00::1", "3fff::1"),
        *("2002:7f00:1::", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "64:ff9b:1::8.8.8.8", "fe80::1%lo"),
    ],
)
def test_addresses_that_are_off_limits(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "151.101.1.69",
        "2606:4700::6810:84e5",
        "2a00:1450:4001::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


# --- how an address may be written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/"),
        *("http://127.0.0.1../", "http://127.0.0.01/", "http://8.8.8.8.8/", "http://1.0x/", "http://[::1%25lo]/"),
        *("http://[::ffff:127.0.0.1%25eth0]/", "http://[v1.fe80]/", "http://user@host/", "http://user:word@host/"),
        *("http://good.example\\@inner.example/", "http://good.example%40inner.example/", "http://%31%32%37.0.0.1/"),
        *("http://host:22/", "http://host:0/", "http://host:99999/", "http://host:-1/", "http://a b/", "http://a..b/"),
        *("http://-a.example/", "http://a\x00b/", f"http://{'a' * 64}.example/", f"http://{'a.' * 200}example/"),
        *("http:///picture.png", "http:picture.png", "http://", "http://[::1", "http://*/", "http://①②⑦.1/"),
    ],
)
def test_odd_spellings_are_refused_before_anything_is_looked_up(url: str, names: dict[str, list[str]]) -> None:
    refusal(url)
    assert not names["look-ups"]


@pytest.mark.parametrize(
    ("url", "host", "port", "selector"),
    [
        ("http://Pictures.Example/a.png", "pictures.example", 80, "/a.png"),
        ("https://pictures.example./a b.png?q=ä#part", "pictures.example", 443, "/a%20b.png?q=%C3%A4"),
        ("HTTP://bücher.example:8080", "xn--bcher-kva.example", 8080, "/"),
        ("http://127。0。0。1/", "127.0.0.1", 80, "/"),
        ("http://127.0.0.1./", "127.0.0.1", 80, "/"),
        ("http://①②⑦.0.0.1/", "127.0.0.1", 80, "/"),
        ("http://[0:0:0:0:0:FFFF:7F00:1]/", "::ffff:7f00:1", 80, "/"),
        ("http://a_b.example/?x", "a_b.example", 80, "/?x"),
    ],
)
def test_an_address_is_read_once_and_plainly(url: str, host: str, port: int, selector: str) -> None:
    target = Target.parse(url)
    assert (target.host.replace("::ffff:127.0.0.1", "::ffff:7f00:1"), target.port, target.selector) == (
        host,
        port,
        selector,
    )


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"[0-9a-fx.%:@\\\[\]/?#\-]{1,24}", fullmatch=True)))
@example("127.0.0.1:80@8.8.8.8")
@example("8.8.8.8#@127.0.0.1/")
@example("8.8.8.8/\\@127.0.0.1")
@example("[::ffff:7f00:1]:80")
def test_whatever_is_written_the_host_that_is_checked_is_the_host_that_is_named(text: str) -> None:
    """A parsed address reads the same again: nothing is left in it that another reader could take differently."""
    with contextlib.suppress(MediaError):
        target = Target.parse(f"http://{text}")
        assert target.host.isascii()
        assert not set(target.host) & set("@/\\?#% \t\r\n[]")
        again = Target.parse(f"http://{target.authority}{target.selector}")
        assert (again.host, again.port) == (target.host, target.port)
        assert target.selector.startswith("/")
        assert not set(target.selector) & set(" \r\n")


# --- what a name resolves to -------------------------------------------------------------------------------------


def test_a_public_picture(port: int, names: dict[str, list[str]]) -> None:
    assert load_image(f"http://pictures.example:{port}/picture.png", policy=OPEN).size == (5, 3)
    assert names["look-ups"] == ["pictures.example"]


def test_the_request_names_the_host_and_tells_nothing_else(port: int, names: dict[str, list[str]]) -> None:
    host, path, headers = ast.literal_eval(fetch(f"http://pictures.example:{port}/asked?a=b#c", OPEN).decode())
    assert (host, path) == (f"pictures.example:{port}", "/asked?a=b")
    assert headers == ["accept", "accept-encoding", "host", "user-agent"]


@pytest.mark.parametrize("host", ["inner.example", "mixed.example", "unknown.example", INNER, "10.0.0.1"])
def test_a_name_that_points_inwards_and_one_that_is_unknown_sound_alike(host: str, names: dict[str, list[str]]) -> None:
    said = refusal(f"http://{host}:{closed_port()}/secret/picture.png?key=1")
    assert said.replace(host, "HOST") == refusal("http://unknown.example/").replace("unknown.example", "HOST")
    assert "secret" not in said and "key" not in said


def test_the_address_that_was_checked_is_the_one_connected_to(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that turns inwards after the check is never asked again: there is one look-up for each hop."""
    answers = iter([[PUBLIC], [INNER], [INNER]])

    def rebinding(host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert fetch(f"http://pictures.example:{port}/picture.png", OPEN) == PNG
    assert next(answers) == [INNER]  # one look-up was made, and not a second one


def test_proxies_of_this_machine_are_not_used(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    assert fetch(f"http://pictures.example:{port}/picture.png", OPEN) == PNG


def test_a_dead_address_leaves_time_for_the_next(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "is_public", lambda _: True)
    names["both.example"] = ["127.0.0.3", PUBLIC]  # nobody listens at the first
    assert fetch(f"http://both.example:{port}/picture.png", OPEN) == PNG


# --- redirects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["/picture.png", "http://pictures.example:{port}/picture.png", "//pictures.example:{port}/picture.png"]
)
def test_a_redirect_is_followed_and_looked_up_again(port: int, names: dict[str, list[str]], place: str) -> None:
    url = f"http://pictures.example:{port}/to?{place.format(port=port)}"
    assert fetch(url, OPEN) == PNG
    assert names["look-ups"] == ["pictures.example"] * 2


@pytest.mark.parametrize(
    "place",
    [
        *("http://inner.example:{port}/picture.png", "http://127.0.0.2:{port}/picture.png", "//inner.example/a.png"),
        *(
            "http://2130706433:{port}/picture.png",
            "file:///etc/passwd",
            "data:image/png;base64,AAAA",
            "ftp://pictures.example/",
        ),
        *(
            "http://user:word@pictures.example:{port}/picture.png",
            "http://pictures.example:22/",
            "http://[::1/",
            "http://",
        ),
    ],
)
def test_a_redirect_gains_nothing(port: int, names: dict[str, list[str]], place: str) -> None:
    said = refusal(f"http://pictures.example:{port}/to?{place.format(port=port)}")
    assert "inner" not in said and "127.0.0" not in said and "passwd" not in said


def test_redirects_are_counted(port: int, names: dict[str, list[str]]) -> None:
    assert "more than 3 times" in refusal(f"http://pictures.example:{port}/loop")
    assert len(names["look-ups"]) == 4
    none = MediaPolicy.for_server(allow_urls=True, max_redirects=0)
    assert "more than 0 times" in refusal(f"http://pictures.example:{port}/once", none)


# --- what can go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("missing", "status 404"),
        ("page", "web page"),
        ("endless", "more than 100000 bytes"),
        ("huge", "1000000000000 bytes"),
        ("short", "broke off after 30 of"),
        ("slow", "longer than 0.4 s"),
        ("slow_header", "longer than 0.4 s"),
        ("silent", "longer than 0.4 s"),
        ("nowhere", "more than 3 times"),
    ],
)
def test_what_can_go_wrong(port: int, names: dict[str, list[str]], path: str, word: str) -> None:
    started = time.monotonic()
    tight = MediaPolicy.for_server(allow_urls=True, max_bytes=100_000, timeout_s=0.4)
    said = refusal(f"http://pictures.example:{port}/{path}?token=secret", tight)
    assert word in said
    assert "secret" not in said and PUBLIC not in said
    assert time.monotonic() - started < 3


def test_a_resolver_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1))
    started = time.monotonic()
    assert "longer than 0.2 s" in refusal(
        "http://slow.example/", MediaPolicy.for_server(allow_urls=True, timeout_s=0.2)
    )
    assert time.monotonic() - started < 0.9


def test_urls_are_off_unless_asked_for() -> None:
    said = refusal("https://pictures.example/a.png", MediaPolicy.for_server())
    assert "data: URI" in said and "--allow-urls" in said


# --- https -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for pictures.example that signs itself, and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program makes the certificate of this test")
    folder = tmp_path_factory.mktemp("certificate")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pictures.example -keyout key.pem -out cert.pem"
    )
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:pictures.example"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


def test_a_certificate_is_checked_against_the_name(
    certificate: Path, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    names["other.example"] = [PUBLIC]
    with serving(PUBLIC, context) as port:
        unknown = refusal(f"https://pictures.example:{port}/picture.png")
        assert "could not be fetched" in unknown and "certificate" not in unknown.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"https://pictures.example:{port}/picture.png", OPEN) == PNG
        assert "could not be fetched" in refusal(f"https://other.example:{port}/picture.png")
    assert asked == ["pictures.example", "pictures.example", "other.example"]
