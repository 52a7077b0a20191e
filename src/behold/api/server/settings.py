"""What the server is told when it is started."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from behold.chat.policy import MediaPolicy
from behold.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Limits and doors of one server.

    port: 0 takes a free one.
    api_keys: any one of them lets a request in; none: no key is asked for, and any is taken.
    cors_origins: pages from these origins may call the API from a browser ("*": from all); none: no other page may.
    allow_urls: pictures may be given as http(s) addresses on the public internet. data: URIs always may.
    jpeg_side: JPEGs are decoded at a part of their size that keeps both sides this many pixels long, see chat.policy.
    max_body_bytes: of one request, and of a picture that is fetched.
    max_waiting: requests that may wait for their turn; one more gets 429.
    max_picture_bytes: prepared pixels of all requests that wait or run; beyond that 429, too.
    deadline_s: a request that takes longer is ended with an error.
    grace_s: after SIGTERM, how long running answers may take to finish.
    served_model_name: the model's id in the API; None: the name it was loaded by, or its folder's.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allow_urls: bool = False
    jpeg_side: int | None = None
    max_body_bytes: int = 48 << 20
    max_waiting: int = 256
    max_picture_bytes: int = 2 << 30
    deadline_s: float = 600.0
    grace_s: float = 30.0
    served_model_name: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise OptionError(f"port={self.port}: a port is a number from 0 (any that is free) to 65535")
        for name in ("max_body_bytes", "max_waiting", "max_picture_bytes"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}: it must be at least 1")
        for name, least in (("deadline_s", 0.001), ("grace_s", 0.0)):
            if not getattr(self, name) >= least:
                raise OptionError(f"{name}={getattr(self, name)}: it must be at least {least:g}")
        if any(not key or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise OptionError("an API key is empty or has characters that a header cannot carry: use ASCII letters")
        MediaPolicy(jpeg_side=self.jpeg_side)  # which says what is wrong with it
        if self.served_model_name == "":
            raise OptionError("served_model_name is empty: leave it out, or give the model a name")

    @property
    def media_policy(self) -> MediaPolicy:
        """What a picture in a request may be and may cost: never a path, an address only where that was allowed."""
        return MediaPolicy.for_server(
            allow_urls=self.allow_urls, max_bytes=self.max_body_bytes, jpeg_side=self.jpeg_side
        )

    @property
    def is_local(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False
