"""What every download shares: a body of bounded size and time, and how its errors name things."""

from __future__ import annotations

import http.client
import re
import time

from behold._version import __version__
from behold.chat.policy import MediaPolicy
from behold.errors import MediaError

HEADERS = {"User-Agent": f"behold/{__version__}", "Accept": "image/*,*/*;q=0.5"}
# What may stand unquoted in an address; everything else (spaces, letters outside ASCII) is percent-encoded.
SAFE = "%/:=&?~#+!$,;'@()*[]"
_CHUNK_BYTES = 64 * 1024
_LENGTH = re.compile(r"[0-9]{1,18}")  # Python itself refuses to read a number of thousands of digits


def read_body(response: http.client.HTTPResponse, where: str, policy: MediaPolicy, deadline: float) -> bytes:
    """The whole body. deadline: a time of time.monotonic().

    Raises:
        MediaError: larger than policy.max_bytes, later than the deadline, or shorter than it said.
    """
    header = response.headers.get("Content-Length", "")
    stated = int(header) if _LENGTH.fullmatch(header) else None
    if stated is not None and stated > policy.max_bytes:
        raise MediaError(f"{where} is {stated} bytes; at most {policy.max_bytes} are fetched. Send a smaller picture.")
    chunks: list[bytes] = []
    size = 0
    # read1 returns after one network read, so a server that trickles bytes still meets the deadline.
    while chunk := response.read1(_CHUNK_BYTES):
        size += len(chunk)
        if size > policy.max_bytes:
            raise MediaError(f"{where} sends more than {policy.max_bytes} bytes; send a smaller picture.")
        if time.monotonic() > deadline:
            raise MediaError(too_slow(where, policy))
        chunks.append(chunk)
    if time.monotonic() > deadline:
        raise MediaError(too_slow(where, policy))
    if stated is not None and size < stated:
        raise MediaError(f"{where} broke off after {size} of {stated} bytes; try again.")
    return b"".join(chunks)


def too_slow(where: str, policy: MediaPolicy) -> str:
    return f"{where} took longer than {policy.timeout_s:g} s; try again, or download it and send the picture itself."


def shorten(text: str, limit: int = 96) -> str:
    """Text for an error message: its beginning, so that a data URI does not fill the screen."""
    return text if len(text) <= limit else f"{text[:limit]}…"
