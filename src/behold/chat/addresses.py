"""Which hosts a stranger may have us ask: names of the public internet, and what those names resolve to.

A host is judged by the addresses we then connect to, never by its text alone, so a name that points inwards, or that
points elsewhere a moment later, gains nothing.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass

from behold.chat.download import SAFE
from behold.errors import MediaError

SCHEMES = ("http", "https")
_PORTS = {"http": 80, "https": 443}
_FIRST_OPEN_PORT = 1024
_LONGEST_NAME = 253
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*")
# What some resolvers read as a number: 127.1, 2130706433, 0x7f.1, 0177.0.0.1.
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
# The platform's own address on Azure, relays of 6to4, and protocol assignments that some Pythons call global.
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        *("168.63.129.16/32", "192.88.99.0/24", "192.0.0.0/24", "100.64.0.0/10"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotPublicError(OSError):
    """A host resolves to something that strangers may not reach; never told from a host that does not resolve."""


@dataclass(frozen=True, slots=True)
class Target:
    """One address of one picture, read once: what is checked is what is asked for.

    host: lower-case ASCII, without brackets or a final dot. selector: path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    selector: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """An absolute URL to its parts.

        Raises:
            MediaError: not http(s), a user name or backslash in it, a port below 1024 other than 80 and 443, or a host
                that is neither a plain name nor a plainly written address.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise MediaError("the picture's address is not a valid URL.") from error
        scheme = parts.scheme.lower()
        if scheme not in SCHEMES:
            raise MediaError("the picture's address is not http or https; only these are fetched.")
        if "@" in parts.netloc or "\\" in url:  # a backslash ends the host for some programs and not for others
            raise MediaError("the picture's address holds a user name or a backslash; give a plain https://host/path.")
        if port is None:
            port = _PORTS[scheme]
        if port not in _PORTS.values() and port < _FIRST_OPEN_PORT:
            raise MediaError(f"the picture's address has the port {port}; allowed are 80, 443 and 1024 upwards.")
        selector = urllib.parse.quote(parts.path or "/", safe=SAFE)
        if parts.query:
            selector += f"?{urllib.parse.quote(parts.query, safe=SAFE)}"
        return cls(scheme, _plain_host(host or "", bracketed="[" in parts.netloc), port, selector)

    @property
    def authority(self) -> str:
        """Host and port as the Host header writes them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def _plain_host(host: str, *, bracketed: bool) -> str:
    try:
        if len(host) > _LONGEST_NAME + 1:
            raise ValueError("too long for a name, and slow to encode as one")
        if bracketed:
            return str(ipaddress.IPv6Address(host if "%" not in host else ""))  # a zone names our own interfaces
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
        if _NUMERIC_END.fullmatch(name):
            return str(ipaddress.IPv4Address(name))
        if _NAME.fullmatch(name):
            return name
    except ValueError:  # UnicodeError is one
        pass
    raise MediaError("the picture's address names no host, or writes it in an unusual way; give https://host/path.")


def is_public(address: IPAddress) -> bool:
    """Whether this address belongs to the public internet, with an IPv4 address inside an IPv6 one looked at too."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST_V6 or address.scope_id:
            return False
    inside = any(address in network for network in _NOT_PUBLIC if network.version == address.version)
    return address.is_global and not address.is_multicast and not inside


def resolve(target: Target, timeout_s: float) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """The public addresses of a host, asked for once: what to connect to, and nothing else.

    Raises:
        NotPublicError: one of them is not public, or there is none.
        TimeoutError: the resolver takes longer than timeout_s.
        OSError: the name does not resolve.
    """
    answers: queue.SimpleQueue[list[tuple[socket.AddressFamily, str]] | Exception] = queue.SimpleQueue()

    def look_up() -> None:  # on a thread of its own: a resolver knows no time limit
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            answers.put([(family, str(address[0])) for family, _, _, _, address in found])
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True, name="behold-resolve").start()
    try:
        answer = answers.get(timeout=max(timeout_s, 0))
    except queue.Empty:
        raise TimeoutError("the resolver takes too long") from None
    if isinstance(answer, Exception):
        raise OSError("the name does not resolve") from answer
    addresses = dict.fromkeys(answer)
    if not addresses or not all(is_public(ipaddress.ip_address(text)) for _, text in addresses):
        raise NotPublicError("it resolves to an address that is not public")
    return [(family, (text, target.port)) for family, text in addresses]
