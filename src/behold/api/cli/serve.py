"""`behold serve`: the OpenAI API and the chat page over one model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from behold.api.cli.options import DebugOption, JsonOption, ModelChoice, takes
from behold.api.cli.printing import print_json
from behold.api.cli.terminal import complain, leaving_at_once, note, reported
from behold.errors import MissingDependencyError

if TYPE_CHECKING:
    from behold.api.server.settings import ServerSettings
    from behold.api.vlm import VLM

_PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client")
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def _door(help: str, *names: str, **more: Any) -> Any:  # noqa: ANN401 - as typer names it; what Annotated takes
    return typer.Option(*names, help=help, rich_help_panel="Who may come in", **more)


def _limit(help: str, *names: str, **more: Any) -> Any:  # noqa: ANN401 - as above
    return typer.Option(*names, help=help, rich_help_panel="Limits", **more)


@dataclass(frozen=True)
class ServerChoice:
    """Where the server is, who may use it, and how much."""

    host: Annotated[str, _door("Address to listen at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1"
    port: Annotated[int, _door("Port; 0 takes a free one.", min=0, max=65535)] = 8000
    api_key: Annotated[
        list[str] | None,
        _door("A key that requests must carry. May be repeated; any one will do.", envvar="BEHOLD_API_KEY"),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        _door("Pages of this origin may call the API from a browser (*: of all). May be repeated."),
    ] = None
    allow_urls: Annotated[bool, _door("Fetch pictures that are given as public http(s) addresses.", "--allow-urls")] = (
        False
    )
    served_model_name: Annotated[
        str | None, _door("The model's id in the API. \\[default: as it was loaded]", show_default=False)
    ] = None
    jpeg_side: Annotated[
        int | None,
        _limit("Decode JPEGs at a part of their size that keeps both sides so many pixels.", min=1, show_default=False),
    ] = None
    max_body_mib: Annotated[int, _limit("Size of a request.", min=1)] = 48
    max_waiting: Annotated[int, _limit("Requests that wait for their turn; one more gets 429.", min=1)] = 256
    deadline: Annotated[float, _limit("Seconds until an answer is cut off.")] = 600.0
    grace: Annotated[float, _limit("Seconds that running answers get after Ctrl+C or SIGTERM.")] = 30.0

    def settings(self) -> ServerSettings:
        """As the server wants it.

        Raises:
            OptionError: a value is out of range.
        """
        from behold.api.server.settings import ServerSettings

        return ServerSettings(
            host=self.host,
            port=self.port,
            api_keys=tuple(self.api_key or ()),
            cors_origins=tuple(self.cors_origin or ()),
            allow_urls=self.allow_urls,
            jpeg_side=self.jpeg_side,
            max_body_bytes=self.max_body_mib << 20,
            max_waiting=self.max_waiting,
            deadline_s=self.deadline,
            grace_s=self.grace,
            served_model_name=self.served_model_name,
        )


@takes(choice=ModelChoice, server=ServerChoice)
def serve(
    *,
    json: JsonOption = False,
    debug: DebugOption = False,
    choice: ModelChoice,
    server: ServerChoice,
) -> None:
    """Answer over HTTP: the OpenAI API at /v1, a chat page at /.

    Ctrl+C or SIGTERM lets running answers finish; the second one cuts them off.
    """
    with reported(debug=debug, hint=choice.hint):
        settings = server.settings()
        with leaving_at_once():
            serving = _serving()
        # Taken before a model is loaded, which may take minutes: a port in use is told at once.
        sock = serving.bind(settings)
        with sock:
            logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
            if not settings.is_local and not settings.api_keys:
                complain(f"whoever reaches {settings.host} can use this model: set --api-key", label="warning")
            if not json:
                note(f"loading {choice.model} …")
            vlm = choice.open()
            url = f"http://{serving.address(_WILDCARDS.get(settings.host, settings.host), sock.getsockname()[1])}"
            on_ready = partial(_announce, vlm, settings, url, json=json)
            serving.Server(vlm, settings, on_ready=on_ready, tell=note).run(sockets=[sock])


def _serving() -> Any:  # noqa: ANN401 - a module
    try:
        from behold.api.server import serving
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise MissingDependencyError(
            f"behold serve needs {error.name}, which is not installed: pip install 'behold-vlm[server]'"
        ) from error
    return serving


def _announce(vlm: VLM, settings: ServerSettings, url: str, *, json: bool) -> None:
    """That requests are answered now, and where."""
    if json:
        print_json({"url": url, "api": f"{url}/v1", "model": settings.served_model_name or vlm.name})
        return
    key = ' -H "authorization: Bearer $BEHOLD_API_KEY"' if settings.api_keys else ""
    note(f"{vlm!r} is served, until Ctrl+C")
    note(f"  page  {url}/")
    note(f"  API   {url}/v1  (OpenAI's; {'with an API key' if settings.api_keys else 'any key will do'})")
    note(
        f"  try   curl {url}/v1/chat/completions -H 'content-type: application/json'{key} "
        """-d '{"messages": [{"role": "user", "content": "Hello!"}]}'"""
    )
