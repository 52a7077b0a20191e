"""A real server with the demo checkpoint on a loopback port, and what is asked of it."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "What do we see in this image?"
KEY = "sk-correct-horse"


@dataclass(frozen=True)
class Running:
    """A server. `url` ends in /v1; `model` is the id it lists; `vlm` is what answers, for the answers to expect."""

    url: str
    model: str
    vlm: Any

    def alone(self, picture: str | None, question: str, **sampling: Any) -> str:
        """What the model says without a server."""
        return str(self.vlm.ask(EXAMPLES / picture if picture else [], question, **sampling))

    def idle(self) -> bool:
        """Waits until nothing runs; False when something still does after some seconds."""
        deadline = time.monotonic() + 5
        while (stats := self.vlm.engine.stats()).running or stats.waiting:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


@contextmanager
def serving(**settings: Any) -> Iterator[Running]:
    """A server in a thread of its own until the block ends."""
    import behold
    from behold.api.server.app import create_app
    from behold.api.server.settings import ServerSettings

    vlm = behold.load("demo")
    app = create_app(vlm, ServerSettings(**settings))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}/v1", app.state.service.model_id, vlm)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def data_uri(name: str = "scene.png") -> str:
    """An example picture as clients send it."""
    return "data:image/png;base64," + base64.b64encode((EXAMPLES / name).read_bytes()).decode()


def seen(*names: str, question: str = QUESTION) -> list[dict[str, Any]]:
    """One user turn with pictures, as the OpenAI documentation writes it."""
    pictures = [{"type": "image_url", "image_url": {"url": data_uri(name)}} for name in names or ("scene.png",)]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]
