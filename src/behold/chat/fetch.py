"""Download one picture over http(s) under a policy: scheme, size, time and redirects are all bounded."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message as Headers
from typing import IO

from behold.chat.addresses import SCHEMES
from behold.chat.download import HEADERS, SAFE, read_body, shorten, too_slow
from behold.chat.policy import MediaPolicy
from behold.chat.public import fetch_public
from behold.errors import MediaError

__all__ = ["SCHEMES", "check_url", "fetch", "shorten"]

LONGEST_URL = 16_384  # servers take less


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that would have been allowed in the first place."""

    def __init__(self, policy: MediaPolicy, first: str) -> None:
        self.policy = policy
        self.first = first
        self.followed = 0

    def redirect_request(  # noqa: PLR0917 - urllib's own signature
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Headers, newurl: str
    ) -> urllib.request.Request | None:
        self.followed += 1
        if self.followed > self.policy.max_redirects:
            raise MediaError(
                f"{self.first} redirects more than {self.policy.max_redirects} times; give the final address."
            )
        fp.close()  # urllib would read the redirect's own body to its end, however long
        check_url(newurl, self.policy)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def check_url(url: str, policy: MediaPolicy) -> None:
    """Whether the policy allows this address at all.

    Raises:
        MediaError: URLs are not allowed, or the scheme is not http(s), or there is no host.
    """
    if not policy.allow_urls:
        raise MediaError(
            f"{shorten(url)} is a URL, and fetching pictures is not allowed here; send the picture itself as a "
            "data: URI (data:image/jpeg;base64,…). Whoever runs this may allow URLs (behold serve --allow-urls)."
        )
    if len(url) > LONGEST_URL:
        raise MediaError(f"{shorten(url)} is {len(url)} characters long; at most {LONGEST_URL} are taken for a URL.")
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise MediaError(f"{shorten(url)} is not a valid URL ({error}).") from error
    if parts.scheme.lower() not in SCHEMES:
        raise MediaError(f"{shorten(url)} has the scheme {parts.scheme!r}; only http and https are fetched.")
    if not host:
        raise MediaError(f"{shorten(url)} names no host; a full address looks like https://host/picture.jpg.")


def fetch(url: str, policy: MediaPolicy) -> bytes:
    """The bytes behind an http(s) address.

    Raises:
        MediaError: not allowed, not reachable, an HTTP error, too slow, or larger than policy.max_bytes.
    """
    check_url(url, policy)
    if policy.public_only:
        return fetch_public(url, policy)
    deadline = time.monotonic() + policy.timeout_s
    request = urllib.request.Request(urllib.parse.quote(url, safe=SAFE), headers=HEADERS)
    try:
        with _opener(policy, shorten(url)).open(request, timeout=policy.timeout_s) as response:
            return read_body(response, shorten(url), policy, deadline)
    except MediaError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise MediaError(f"{shorten(url)} answered {error.code} {error.reason}; check the address.") from error
    except TimeoutError as error:
        raise MediaError(too_slow(shorten(url), policy)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        # URLError is an OSError; a refused address (spaces, a bad port) is an InvalidURL, an HTTPException.
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise MediaError(too_slow(shorten(url), policy)) from error
        raise MediaError(
            f"{shorten(url)} could not be fetched ({reason}); check the address and the network."
        ) from error


def _opener(policy: MediaPolicy, first: str) -> urllib.request.OpenerDirector:
    # Built by hand: urllib's default opener would also answer file:, ftp: and data: addresses.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(policy, first),
    ):
        opener.add_handler(handler)
    return opener
