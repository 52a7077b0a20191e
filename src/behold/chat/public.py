"""Download a picture for a stranger: from the public internet only, whatever the address, its redirects or its DNS say.

Each hop is parsed once, resolved once, and connected to an address that was checked; the Host header and the
certificate still belong to the name. Proxies, credentials and cookies of this machine are never used. Errors repeat
only the host that was given, and say the same whether a name is unknown or points somewhere that is off limits.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import string
import threading
import time
import urllib.parse
from collections.abc import Iterator

from behold.chat.addresses import Target, resolve
from behold.chat.download import HEADERS, read_body, shorten, too_slow
from behold.chat.policy import MediaPolicy
from behold.errors import MediaError

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def fetch_public(url: str, policy: MediaPolicy) -> bytes:
    """The bytes behind a public http(s) address.

    Raises:
        MediaError: refused, not reachable, an HTTP error, too slow, or larger than policy.max_bytes.
    """
    deadline = time.monotonic() + policy.timeout_s
    target = Target.parse(url)
    where = f"the picture at {shorten(target.host)}"
    try:
        for _ in range(policy.max_redirects + 1):
            with _connected(target, deadline) as connection:
                connection.request("GET", target.selector, headers={"Host": target.authority, **HEADERS})
                with connection.getresponse() as response:
                    if 200 <= response.status < 300:
                        return read_body(response, where, policy, deadline)
                    if response.status not in _REDIRECTS:
                        raise MediaError(f"{where} answered with the status {response.status}; check the address.")
                    url = _next(url, response.headers.get("Location", ""))
            target = Target.parse(url)
    except MediaError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, TimeoutError) or time.monotonic() > deadline:
            raise MediaError(too_slow(where, policy)) from error
        raise MediaError(
            f"{where} could not be fetched; give a public http(s) address, or send the picture itself as a data: URI."
        ) from error
    raise MediaError(f"{where} redirects more than {policy.max_redirects} times; give the final address.")


def _next(url: str, location: str) -> str:
    # Headers are read as Latin-1; quoting in it gives back the bytes that were sent.
    return urllib.parse.urljoin(url, urllib.parse.quote(location, safe=string.punctuation, encoding="latin-1"))


@contextlib.contextmanager
def _connected(target: Target, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """A connection to a checked address of the target, shut at the deadline whatever it is waiting for."""
    sock = _open(target, deadline)
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.auto_open = 0  # it may never look the name up by itself
    try:
        sock.settimeout(_left(deadline))
        if target.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
        connection.sock = sock
        # A socket's own limit is for one read: a header sent letter by letter would never end.
        alarm = threading.Timer(_left(deadline), _shut, [sock])
        alarm.daemon = True
        alarm.start()
        try:
            yield connection
        finally:
            alarm.cancel()
            connection.close()
    finally:
        sock.close()


def _open(target: Target, deadline: float) -> socket.socket:
    """A socket connected to the first address that answers."""
    addresses = resolve(target, _left(deadline))
    failure: OSError = OSError("no address")
    for index, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_left(deadline) / (len(addresses) - index))  # one dead address leaves time for the next
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
