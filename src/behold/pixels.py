"""Pillow's memory: where the pixels of a picture lie, and that they lie well."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import suppress
from typing import Any

from PIL import Image
from PIL.ImageFile import ImageFile

from behold.pages import Advice, advise

_ONE_PIECE_BYTES = 1 << 30
_MAPPED_BYTES = 32 << 20  # so much the C library always maps by itself
_LIKELY_RATIO = 64  # photographs have 10 to 30 bytes of pixels a byte of file; one colour, or a file cut off, more
_block_size = threading.Lock()


class _ArrowArray(ctypes.Structure):
    """https://arrow.apache.org/docs/format/CDataInterface.html, as far as it is read here."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


class Turned(Image.Image):
    """A picture that was stored lying or mirrored, upright: its pixels are turned as soon as somebody wants them.

    Who wants it small only need not wait for that. lying: the picture as it was stored; None when it has been turned.
    turn: what turns it.
    """

    lying: Image.Image | None = None
    turn: Image.Transpose

    def __init__(self, lying: Image.Image, turn: Image.Transpose) -> None:
        super().__init__()
        self.lying, self.turn = lying, turn
        self._mode = lying.mode
        self._size = lying.size[::-1] if swaps(turn) else lying.size
        self.info = dict(lying.info)

    def load(self) -> Any:  # noqa: ANN401 - Pillow's own access to pixels
        """As every picture's: called by whatever needs the pixels."""
        lying = self.lying
        if lying is not None:
            self.im = lying.transpose(self.turn).im
            self.lying = None
        return super().load()


def swaps(turn: Image.Transpose) -> bool:
    """Whether width and height change places."""
    turns = Image.Transpose
    return turn in (turns.TRANSPOSE, turns.ROTATE_90, turns.ROTATE_270, turns.TRANSVERSE)


def lent(image: Any) -> tuple[int, Any]:  # noqa: ANN401 - Pillow's own storage has no type
    """The address of the pixels of an RGB picture, four bytes each, and what must be kept alive meanwhile.

    Raises:
        ValueError: they lie in several pieces.
        AttributeError: this Pillow is older than 11.2.
    """
    capsule = image.__arrow_c_array__()
    capsule = capsule[1] if isinstance(capsule, tuple) else capsule  # a picture gives its schema too, its storage not
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    array = _ArrowArray.from_address(pointer(capsule, b"arrow_array"))
    address = array.children[0].contents.buffers[1]
    assert address is not None
    return address, (image, capsule)


def prepare(image: ImageFile, n_bytes: int) -> None:
    """Take the memory of a picture that is decoded next, in one piece and, from 8 million pixels on, in large pages.

    Pillow takes pieces of 16 MB, which could not be read where they lie, in pages of 4 KiB: to get these from the
    system, one after the other, is up to a third of the time of decoding. The large ones are asked for by a thread of
    its own, ahead of the decoder, if the file, of n_bytes, is long enough to fill them; that is read at once.
    """
    image.decodermaxblock = max(image.decodermaxblock, n_bytes)
    core: Any = getattr(Image, "core", None)
    size = 4 * image.width * image.height
    with _block_size:
        usual = core.get_block_size() if hasattr(core, "set_block_size") else _ONE_PIECE_BYTES
        if not usual < size < _ONE_PIECE_BYTES:
            return
        core.set_block_size(_ONE_PIECE_BYTES)
        try:
            with suppress(MemoryError):  # which is said where it is decoded
                image.load_prepare()
        finally:
            core.set_block_size(usual)
    if sys.platform == "linux" and size > _MAPPED_BYTES and image.mode == "RGB":
        with suppress(OSError, AttributeError, ValueError, TypeError):  # then they are small, as everywhere else
            address, owner = lent(image.im)
            advise(address, size, Advice.LARGE)
            if size <= _LIKELY_RATIO * n_bytes:
                threading.Thread(target=_populate, args=(address, size, owner), daemon=True).start()
            del owner


def _populate(address: int, n_bytes: int, owner: object) -> None:
    """owner: keeps the memory meanwhile."""
    advise(address, n_bytes, Advice.WRITE)
    del owner
