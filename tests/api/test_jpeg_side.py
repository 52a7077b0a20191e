"""JPEGs decoded at a part of their size, where somebody allowed it: through every door, and nowhere else."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

import behold
from behold.api.cli import main
from behold.api.server.inputs import chat_messages
from behold.api.server.schemas_chat import ChatMessage
from behold.api.server.settings import ServerSettings
from behold.errors import OptionError
from behold.processing.processor import Processor
from behold.types import ImagePart, Prompt
from tests import toys

WHOLE, HALF = (640, 480), (320, 240)
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def model() -> str:
    return str(toys.checkpoint("llava-siglip-qwen2"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.jpg"
    toys.picture().resize(WHOLE).save(path)
    return str(path)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the pictures that processors are given from now on."""
    sizes: list[tuple[int, int]] = []
    chat = Processor.chat

    def spied(self: Processor, messages: list[behold.Message], **more: object) -> Prompt:
        sizes.extend(part.image.size for message in messages for part in message.parts if isinstance(part, ImagePart))
        return chat(self, messages, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Processor, "chat", spied)
    return sizes


@pytest.mark.parametrize(("side", "size"), [(None, WHOLE), (200, HALF)])
def test_in_python(
    model: str, photo: str, seen: list[tuple[int, int]], side: int | None, size: tuple[int, int]
) -> None:
    vlm, short = behold.load(model, jpeg_side=side), {"max_new_tokens": 1}
    content = [{"type": "image", "path": photo}, {"type": "text", "text": QUESTION}]
    vlm.ask(photo, QUESTION, **short)
    list(vlm.stream(photo, QUESTION, **short))
    vlm.chat().say(photo, QUESTION, **short)
    vlm.generate([{"role": "user", "content": content}], **short)
    vlm.generate([{"role": "user", "content": [{"type": "image"}, content[1]]}], images=[photo], **short)
    vlm.batch([(photo, QUESTION), [{"role": "user", "content": content}]], **short)
    vlm.choose(photo, QUESTION, ["a", "b"])
    list(vlm.choose_many([(photo, QUESTION)], ["a", "b"]))
    assert seen == [size] * 9


@pytest.mark.parametrize("side", [0, -1, 2.5, "768", True])
def test_what_is_no_side_is_said_before_anything_is_loaded(side: object) -> None:
    with pytest.raises(OptionError, match=r"jpeg_side=.*whole number"):
        behold.load("no such model", jpeg_side=side)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"jpeg_side=.*whole number"):
        ServerSettings(jpeg_side=side)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "size"), [([], WHOLE), (["--jpeg-side", "200"], HALF)])
def test_on_the_command_line(
    *,
    model: str,
    photo: str,
    seen: list[tuple[int, int]],
    options: list[str],
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello?\n/image " + photo + "\nAnd this?\n"))
    short = ["--model", model, "--max-new-tokens", "1", *options]
    show = ["show", photo, "--model", model, "--output", str(tmp_path / "seen.png"), *options]
    for words in (["ask", photo, QUESTION, *short], ["chat", photo, *short], show):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
    assert seen == [size] * 5, "chat: the first picture in two prompts, the second in one"


def test_on_the_command_line_it_must_be_a_side(photo: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["ask", photo, QUESTION, "--jpeg-side", "0"])
    assert left.value.code == 2
    assert "--jpeg-side" in capsys.readouterr().err


@pytest.mark.parametrize(("side", "size"), [(None, WHOLE), (200, HALF)])
def test_in_a_server(photo: str, side: int | None, size: tuple[int, int]) -> None:
    uri = "data:image/jpeg;base64," + base64.b64encode(Path(photo).read_bytes()).decode()
    message = ChatMessage.model_validate(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": "?"}]}
    )
    ((part, _),) = (each.parts for each in chat_messages([message], ServerSettings(jpeg_side=side).media_policy))
    assert isinstance(part, ImagePart)
    assert isinstance(part.image, Image.Image) and part.image.size == size
