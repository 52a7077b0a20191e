"""Any form a picture comes in, to an upright RGB PIL image, or a MediaError that says what was wrong with it.

A picture is a path, an http(s) URL, a data: URI, base64 text, bytes, a file object, a PIL image, a numpy array or a
torch tensor. Nothing is dropped silently, and no text can make this read a `file:` address.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import string
import urllib.parse
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from behold.chat.arrays import array_to_image, is_tensor, tensor_to_array
from behold.chat.decode import FORMATS, decode, upright_rgb
from behold.chat.fetch import SCHEMES, fetch, shorten
from behold.chat.policy import MediaPolicy
from behold.errors import MediaError

__all__ = ["FORMATS", "MediaPolicy", "load_image"]

# Every pattern and step below is linear in the text, which strangers may send by the megabyte.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{1,30}):(//)?")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}")
# Shorter text is taken for a mistyped path: the smallest valid PNG alone is 67 bytes, 92 letters of base64.
_SHORTEST_BASE64 = 24
_PLAIN_LETTERS = str.maketrans("-_", "+/", string.whitespace)
# Of base64 only + / = and line ends are ever percent-encoded: far fewer than this in the largest picture.
_MOST_QUOTED = 2_000_000


@runtime_checkable
class Readable(Protocol):
    """A file object opened for reading bytes."""

    def read(self, size: int = ..., /) -> object: ...


def load_image(source: object, *, policy: MediaPolicy | None = None) -> Image.Image:
    """One picture in any form of the module docstring to a new upright RGB image, transparency on white.

    Raises:
        MediaError: it cannot be read, is too large, or may not be fetched; the message says which, and the remedy.
    """
    policy = policy or MediaPolicy()
    if (found := _in_memory(source)) is not None:
        image, where = found
        return upright_rgb(image, where, policy)
    data, where = _encoded(source, policy)
    return decode(data, where, policy)


def _in_memory(source: object) -> tuple[Image.Image, str] | None:
    """A source that holds pixels rather than an encoded file: a PIL image, a tensor, an array."""
    if isinstance(source, Image.Image):
        return source, "the PIL image"
    if is_tensor(source):
        return array_to_image(tensor_to_array(source), "the tensor", channels_first=True), "the tensor"
    if hasattr(source, "__array__") and not isinstance(source, str | bytes):  # numpy's own strings have it too
        where = "the array" if isinstance(source, np.ndarray) else f"the {type(source).__name__}"
        return array_to_image(np.asarray(source), where), where
    return None


def _encoded(source: object, policy: MediaPolicy) -> tuple[bytes, str]:
    """The encoded file that a source stands for, and what to call it in a message."""
    if isinstance(source, str):
        return _from_text(source.strip(), policy)
    if isinstance(source, os.PathLike):
        return _from_path(os.fsdecode(os.fspath(source)), policy)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "the given bytes"
    if isinstance(source, Readable):
        return _from_file(source, policy), "the file object"
    forms = "a data: URI, base64 text or an http(s) URL"
    if policy.allow_paths:
        forms = f"a path, {forms}, bytes, a file object, a PIL image, a numpy array or a torch tensor"
    raise MediaError(f"a picture was given as {type(source).__name__}; give {forms}.")


def _from_text(text: str, policy: MediaPolicy) -> tuple[bytes, str]:
    scheme = _SCHEME.match(text)
    name = scheme.group(1).lower() if scheme else ""
    if name == "data":
        return _data_uri(text, policy), "the data: URI"
    if name in SCHEMES:
        return fetch(text, policy), "what the URL gives" if policy.public_only else shorten(text)
    if name == "file" or (scheme and scheme.group(2)):
        raise MediaError(
            f"{shorten(text)} has the scheme {name!r}; pictures are fetched over http and https. "
            + ("For a file on this machine give its plain path." if policy.allow_paths else "Send the picture itself.")
        )
    if policy.allow_paths and os.path.exists(text):
        return _from_path(text, policy)
    if len(text) >= _SHORTEST_BASE64 and _BASE64.fullmatch(text):
        return _base64(text, "the base64 text", policy), "the base64 text"
    if not policy.allow_paths:
        raise MediaError(f"{shorten(text)!r} is neither an http(s) URL nor a data: URI nor base64.")
    raise MediaError(
        f"there is no file {shorten(text)!r}, and it is neither an http(s) URL nor a data: URI nor base64; "
        "check the path."
    )


def _from_path(path: str, policy: MediaPolicy) -> tuple[bytes, str]:
    if not policy.allow_paths:
        raise MediaError("files on this machine may not be read here; send the picture itself.")
    where = f"the file {shorten(path)!r}"
    try:
        if os.path.isdir(path):
            raise MediaError(f"{shorten(path)!r} is a folder; name one picture in it.")
        size = os.stat(path).st_size
        if size > policy.max_bytes:
            raise MediaError(f"{where} is {size} bytes; at most {policy.max_bytes} are read. Send a smaller picture.")
        with open(path, "rb") as file:
            return file.read(policy.max_bytes + 1), where  # bounded again: pipes and devices state no size
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"there is no file {shorten(path)!r}; check the path.") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise MediaError(f"{where} cannot be read ({error}).") from error


def _from_file(file: Readable, policy: MediaPolicy) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        if callable(seek := getattr(file, "seek", None)) and getattr(file, "seekable", lambda: True)():
            seek(0)  # as Pillow does: a file that was written or read before is meant whole
        while size <= policy.max_bytes and (chunk := file.read(policy.max_bytes + 1 - size)):
            if not isinstance(chunk, bytes | bytearray):
                raise MediaError(f"the file object gives {type(chunk).__name__}, not bytes; open it in mode 'rb'.")
            chunks.append(bytes(chunk))
            size += len(chunk)
    except MediaError:
        raise
    except Exception as error:  # whatever the caller's own object raises
        raise MediaError(f"the file object cannot be read ({type(error).__name__}: {error}).") from error
    return b"".join(chunks)


def _data_uri(text: str, policy: MediaPolicy) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise MediaError(f"{shorten(text)!r} has no comma; a data: URI is data:image/png;base64,… .")
    if body.count("%") > _MOST_QUOTED:
        raise MediaError(f"the data: URI has more than {_MOST_QUOTED} percent-encoded bytes; send it as plain base64.")
    if head.lower().rstrip().endswith(";base64"):
        return _base64(urllib.parse.unquote(body), "the data: URI", policy)
    _check_length(len(body) // 3, "the data: URI", policy)  # each byte is one letter, or three when quoted
    return urllib.parse.unquote_to_bytes(body)


def _base64(text: str, where: str, policy: MediaPolicy) -> bytes:
    _check_length(len(text) * 3 // 4 - 2, where, policy)
    letters = text.translate(_PLAIN_LETTERS).rstrip("=")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"{where} is not valid base64 ({error}); it was probably cut off.") from error


def _check_length(n_bytes: int, where: str, policy: MediaPolicy) -> None:
    if n_bytes > policy.max_bytes:
        raise MediaError(
            f"{where} is about {n_bytes} bytes; at most {policy.max_bytes} are read. Send a smaller picture."
        )
