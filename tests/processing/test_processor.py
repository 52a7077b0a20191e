"""Messages to prompts: expansion, spans, typed tokens, and every mismatch of pictures and places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from behold.chat.literals import RenderedPrompt
from behold.chat.messages import parse_messages
from behold.checkpoint.files import CheckpointFiles
from behold.errors import ChatError, UnsupportedModelError
from behold.processing.processor import Processor, find_spans
from behold.types import ImageInput, ImageSpan
from tests import toys
from tests.processing.opening import open_processor

NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2", "idefics2-split")


def load(name: str) -> Processor:
    return open_processor(toys.checkpoint(name))


def picture(seed: int = 0) -> dict[str, Any]:
    return {"type": "image", "image": toys.picture(40, 30, seed)}


@pytest.mark.parametrize("name", NAMES)
def test_spans_cover_exactly_the_image_tokens(name: str) -> None:
    processor = load(name)
    messages = parse_messages({"role": "user", "content": [picture(1), "a <image> b", picture(2), picture(3)]})
    prompt = processor.chat(messages)
    token = processor.layout.image_token_id
    places = [place for span in prompt.spans for place in range(span.start, span.stop)]
    assert places == [place for place, identifier in enumerate(prompt.ids) if identifier == token]
    assert [span.image for span in prompt.spans] == list(range(len(prompt.images)))
    assert [span.length for span in prompt.spans] == [image.n_tokens for image in prompt.images]
    assert prompt.image_tokens == len(places)
    assert len(prompt.images) == (15 if "split" in name else 3)


def test_the_example_of_image_span() -> None:
    processor = load("idefics2")
    prompt = processor.prompt("<s><image>", [toys.picture()], add_special_tokens=False)
    fake = processor.tokenizer.token_to_id("<fake_token_around_image>")
    image = processor.layout.image_token_id
    assert prompt.ids == (1, fake, *[image] * 5, fake)
    assert prompt.spans == (ImageSpan(2, 5, 0),)


@pytest.mark.parametrize("name", NAMES)
def test_a_hand_written_prompt_means_what_it_says(name: str) -> None:
    processor = load(name)
    prompt = processor.prompt("<image> What?", [toys.picture()])
    assert prompt.image_tokens > 0
    typed = processor.prompt(RenderedPrompt("<image> What is <image>?", [(16, 23)]), [toys.picture()])
    assert typed.image_tokens == prompt.image_tokens
    assert processor.prompt("no picture").images == ()


@pytest.mark.parametrize("name", NAMES)
def test_render_shows_what_chat_tokenises(name: str) -> None:
    processor = load(name)
    messages = parse_messages({"role": "user", "content": [picture(), "Is <image> or </s> typed?"]})
    text = processor.render(messages)
    assert text.count("<image>") == processor.chat(messages).image_tokens + 1
    assert next(text[start:stop] for start, stop in text.literals) == "<image>"
    assert processor.tokenizer.encode(text) == list(processor.chat(messages).ids)


def test_expansion_moves_typed_ranges_along() -> None:
    processor = load("idefics2")
    inputs = processor.layout.prepare([toys.picture(), toys.picture()])
    text = RenderedPrompt("<image><image>typed <fake_token_around_image> <image>", [(20, 45), (46, 53)])
    expanded = processor.expand(text, inputs)
    assert [expanded[start:stop] for start, stop in expanded.literals] == ["<fake_token_around_image>", "<image>"]
    assert expanded.count("<fake_token_around_image>") == 4


def test_typed_fake_tokens_are_not_merged() -> None:
    processor = load("idefics2")
    fake = "<fake_token_around_image>"
    messages = parse_messages({"role": "user", "content": [picture(), fake + fake + "x"]})
    text = processor.render(messages)
    assert text.count(fake) == 4
    assert list(processor.chat(messages).ids).count(processor.tokenizer.token_to_id(fake)) == 2  # type: ignore[arg-type]


# --- where the answer begins -------------------------------------------------------------------------------------

TURN = {"role": "user", "content": "Hi"}
STARTED = [TURN, {"role": "assistant", "content": "Well, I"}]


def test_a_final_assistant_message_goes_on_unless_asked_not_to() -> None:
    processor = load("llava-siglip-qwen2")
    assert processor.render(parse_messages(TURN)).endswith("<|im_start|>assistant\n")
    assert processor.render(parse_messages(STARTED)).endswith("Well, I")
    assert processor.render(parse_messages(STARTED), continue_final_message=False).endswith("<|im_start|>assistant\n")
    assert processor.render(parse_messages(TURN), continue_final_message=True).endswith("\nHi")
    assert processor.render(parse_messages(TURN), add_generation_prompt=False).endswith("Hi<|im_end|>\n")


def test_an_empty_assistant_message_starts_a_new_answer() -> None:
    messages = parse_messages([TURN, {"role": "assistant", "content": []}])
    assert load("llava-siglip-qwen2").render(messages).endswith("assistant\n")


def test_variables_reach_the_template(tmp_path: Path) -> None:
    processor = edited(tmp_path, "{{ tone }} {{ messages[0].content[0].text }} {{ eos_token }}")
    assert processor.render(parse_messages(TURN), tone="kind") == "kind Hi </s>"


# --- mismatches --------------------------------------------------------------------------------------------------


def edited(tmp_path: Path, template: str | None, name: str = "llava-clip-llama") -> Processor:
    """A toy with another chat template."""
    folder = toys.copy(toys.checkpoint(name), tmp_path / "copy")
    for path in folder.glob("chat_template*"):
        path.unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return open_processor(folder)


@pytest.mark.parametrize(("text", "n_images", "places"), [("<image><image>", 1, 2), ("none", 1, 0), ("<image>", 0, 1)])
def test_hand_written_places_must_match(text: str, n_images: int, places: int) -> None:
    with pytest.raises(ChatError, match=rf"{places} places for pictures \(<image>\), and {n_images} pictures"):
        load("llava-clip-llama").prompt(text, [toys.picture()] * n_images)


def test_a_template_that_loses_pictures(tmp_path: Path) -> None:
    each = "{% for c in m.content %}{{ c.text or '<image>' }}{% endfor %}"
    processor = edited(tmp_path, "{% for m in messages if m.role == 'user' %}" + each + "{% endfor %}")
    raw = [{"role": "system", "content": [picture(), picture(), "x"]}, {"role": "user", "content": [picture(), "y"]}]
    with pytest.raises(ChatError) as caught:
        processor.chat(parse_messages(raw))
    assert "1 places for 3 pictures" in str(caught.value)
    assert "message 0 (system) has 2, message 1 (user) has 1" in str(caught.value)


def test_places_without_pictures() -> None:
    messages = parse_messages([TURN, {"role": "user", "content": [{"type": "image"}]}])
    with pytest.raises(ChatError, match=r"message 1 \(user\) has a place for a picture"):
        load("llava-clip-llama").chat(messages)


def test_no_template(tmp_path: Path) -> None:
    processor = edited(tmp_path, None)
    with pytest.raises(ChatError, match="no chat template"):
        processor.chat(parse_messages(TURN))
    assert processor.prompt("<image> x", [toys.picture()]).image_tokens == 16


def test_a_template_that_writes_the_beginning_itself(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama"), tmp_path / "copy")
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert open_processor(folder).chat(parse_messages(TURN)).ids.count(1) == 1
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content[0].text }}", encoding="utf-8")
    assert open_processor(folder).chat(parse_messages(TURN)).ids.count(1) == 1
    assert open_processor(folder).prompt("<s>Hi").ids.count(1) == 2


def test_a_tokenizer_that_does_not_fit_the_model(tmp_path: Path) -> None:
    folder = toys.copy(toys.checkpoint("llava-clip-llama"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"image_token_id": 5, "image_token_index": 5}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="do not belong together"):
        open_processor(folder)


def test_interrupted_runs_of_image_tokens() -> None:
    import numpy as np

    each = ImageInput(np.zeros((3, 1, 1), np.float32), 2, "a")
    assert list(find_spans([7, 7, 7, 7], [each, each], 7)) == [ImageSpan(0, 2, 0), ImageSpan(2, 2, 1)]
    with pytest.raises(ChatError, match="interrupted"):
        list(find_spans([7, 1, 7], [each], 7))
    with pytest.raises(ChatError, match="3 image tokens, and 1 pictures fill 2"):
        list(find_spans([7, 7, 7], [each], 7))


def test_eos_ids_of_all_files_are_united() -> None:
    processor = load("idefics2")
    files = CheckpointFiles.read(toys.checkpoint("idefics2"))
    assert files.eos_token_ids | {processor.tokenizer.eos_token_id} == processor.eos_token_ids


def test_pictures_are_not_changed() -> None:
    image = toys.picture(40, 30)
    before = image.tobytes()
    load("idefics2-split").prompt("<image>", [image])
    assert image.tobytes() == before and isinstance(image, Image.Image)
