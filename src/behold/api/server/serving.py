"""The process around the application: its socket, and how it comes to an end."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from behold.api.server.app import create_app
from behold.errors import BeholdError

if TYPE_CHECKING:
    from behold.api.server.service import Service
    from behold.api.server.settings import ServerSettings
    from behold.api.vlm import VLM

# Longer than clients and proxies keep a connection without using it, so that they are the ones who close it.
_KEEP_ALIVE_S = 75
# What was cut off has this long to read so.
_LAST_WORDS_S = 2


def bind(settings: ServerSettings) -> socket.socket:
    """The address taken, before a model is loaded; who connects is refused until the server listens.

    Raises:
        BeholdError: the port is in use, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise BeholdError(
            f"cannot listen at {address(settings.host, settings.port)} ({reason}): choose another --port (0 takes a "
            "free one) or --host"
        ) from error
    return sock


def address(host: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Server(uvicorn.Server):
    """One model behind one socket. `run(sockets=[bind(settings)])` serves until SIGTERM or Ctrl+C.

    Then running answers finish, for `grace_s` at most, and new requests get 503, at the door that uvicorn would close
    first; a second signal cuts off what still runs.

    on_ready: called once requests are answered. tell: gets what a person at the terminal may want to know.
    """

    def __init__(
        self,
        vlm: VLM,
        settings: ServerSettings,
        *,
        on_ready: Callable[[], object] = lambda: None,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        app = create_app(vlm, settings)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self.service: Service = app.state.service
        self._on_ready = on_ready
        self._tell = tell
        self._grace_ends: float | None = None
        self._told = self._cut = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs between any two steps of the main thread, so it only takes notes, which `on_tick` reads."""
        if self._grace_ends is None:
            self._grace_ends = time.monotonic() + self.service.settings.grace_s
            self.service.draining = True
        elif self._cut and sig == signal.SIGINT:
            self.force_exit = True
        else:
            self._cut = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; True begins the end."""
        if self._grace_ends is not None and not self.should_exit:
            if not self._told and (n := self.service.in_flight):
                seconds = self.service.settings.grace_s
                self._tell(f"stopping: {n} running requests have {seconds:g} seconds to finish, or until Ctrl+C")
            self._told = True
            self._cut = self._cut or time.monotonic() >= self._grace_ends
            if self._cut:
                self.service.abort()
            self.should_exit = self._cut or not self.service.in_flight
        return await super().on_tick(counter)
