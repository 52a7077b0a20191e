"""What a picture may cost and where it may come from: decided by the caller, never by the picture."""

from __future__ import annotations

from dataclasses import dataclass

from behold.errors import OptionError


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """Limits on one picture. The defaults suit a local caller, who may name any file and any http(s) address.

    max_bytes: encoded size, of a file, a download or a base64 text after decoding.
    max_pixels: width × height as the header states it, checked before anything is decoded. The default is the
        number above which Pillow itself speaks of a decompression bomb.
    timeout_s: the whole download, redirects included, not one read of it.
    allow_urls, allow_paths: whether http(s) addresses are fetched, and files of this machine are read.
    public_only: fetch from the public internet only, as chat.public says: for callers who act for strangers.
    jpeg_side: decode a JPEG at a half, a quarter or an eighth of its size, as long as both sides keep this many pixels:
        about two thirds of the time for a large photograph. Each pixel is then the mean of a block, and what is made of
        them differs a little from what all pixels give. None decodes every pixel.
    """

    max_bytes: int = 128 * 2**20
    max_pixels: int = 89_478_485
    timeout_s: float = 30.0
    max_redirects: int = 5
    allow_urls: bool = True
    allow_paths: bool = True
    public_only: bool = False
    jpeg_side: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("max_pixels", 1), ("timeout_s", 0.001), ("max_redirects", 0)):
            value = getattr(self, name)
            if not value >= least:
                raise OptionError(f"MediaPolicy.{name} is {value!r}; it must be at least {least}.")
        side = self.jpeg_side
        if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
            raise OptionError(
                f"jpeg_side={side!r}: it must be a whole number of pixels from 1 on, or None to decode all of a JPEG."
            )

    @classmethod
    def for_server(
        cls,
        *,
        allow_urls: bool = False,
        max_bytes: int = 20 * 2**20,
        max_pixels: int = 40_000_000,
        timeout_s: float = 10.0,
        max_redirects: int = 3,
        jpeg_side: int | None = None,
    ) -> MediaPolicy:
        """What strangers may send: no files of this machine, and URLs only if asked for and then public ones only.

        The limits let every usual photograph in, and hold a picture while it is decoded to a few hundred megabytes.

        Raises:
            OptionError: a limit is out of range.
        """
        return cls(
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            timeout_s=timeout_s,
            max_redirects=max_redirects,
            allow_urls=allow_urls,
            allow_paths=False,
            public_only=True,
            jpeg_side=jpeg_side,
        )
