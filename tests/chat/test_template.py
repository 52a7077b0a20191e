"""Chat templates: the published ones, the sandbox, and typed text that looks like a special token."""

from __future__ import annotations

import copy
import json
import pickle
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from behold.chat import sandbox
from behold.chat.literals import PRIVATE, Masker, RenderedPrompt
from behold.chat.messages import parse_messages
from behold.chat.template import ChatTemplate
from behold.errors import ChatError
from behold.types import Message
from tests import toys

SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
EXPECTED = SHARED / "_expected" / "rendered_templates.json"
TOKENS = ["<|im_start|>", "<|im_end|>", "<image>", "<s>"]


def template(source: str = toys.CHATML, **tokens: str) -> ChatTemplate:
    return ChatTemplate(source, tokens, control_tokens=TOKENS, image_token="<image>")


def user(*texts: str) -> list[Message]:
    return parse_messages({"role": "user", "content": list(texts)})


def literal_texts(prompt: RenderedPrompt) -> list[str]:
    return [prompt[start:stop] for start, stop in prompt.literals]


# --- published templates -----------------------------------------------------------------------------------------


def published() -> dict[str, str]:
    rendered: dict[str, str] = (
        json.loads(EXPECTED.read_text(encoding="utf-8"))["rendered"] if EXPECTED.is_file() else {}
    )
    return rendered


def published_source(folder: Path) -> str:
    for name in ("chat_template.json", "chat_template.jinja", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            source = text if name.endswith("jinja") else json.loads(text).get("chat_template")
            if isinstance(source, str):
                return source
    raise AssertionError(f"{folder} has no chat template")


@pytest.mark.skipif(not EXPECTED.is_file(), reason="the published templates lie beside this repository, not in it")
@pytest.mark.parametrize("name", published() or ["none"])
def test_published_templates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class June(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2025, 6, 20)

    monkeypatch.setattr(sandbox, "datetime", June)
    given = json.loads(EXPECTED.read_text(encoding="utf-8"))
    expected = given["rendered"][name]
    # The tables of special tokens are not all published: the one that the expected text begins with will do.
    bos = next((token for token in ("<|begin_of_text|>", "<bos>", "<s>") if expected.startswith(token)), "<s>")
    chat = ChatTemplate(published_source(SHARED / name), {"bos_token": bos, "eos_token": "</s>"})
    prompt = chat.render(parse_messages(given["messages"]), add_generation_prompt=given["add_generation_prompt"])
    assert prompt == expected
    assert prompt.literals == ()


# --- what templates may use --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),  # blocks and their lines leave no trace
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=1, sort_keys=true) }}", '{\n "a": [\n  2\n ],\n "b": 1\n}'),
        ("{% generation %}{{ messages[0].content[0].text }}{% endgeneration %}!", "Hi!"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}", "1"),
        ("{{ bos_token }}{{ eos_token is defined }}", "<s>False"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ tools }}{{ documents }}{{ add_generation_prompt }}", "NoneNoneFalse"),
        ("{{ '%s and %d' % ('a', 2) }}{{ 'ab'|center(4) }}{{ '%05d'|format(3) }}", "a and 2 ab 00003"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{{ 2 ** 3 * 2 }}{{ 'ab' * 2 }}{{ 7 % 4 }}", "16abab3"),
    ],
)
def test_helpers(source: str, expected: str) -> None:
    assert template(source, bos_token="<s>").render(user("Hi")) == expected


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{{ raise_exception('Only user roles!') }}", "Only user roles!"),
        ("{{ missing.attribute }}", "missing"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{{ messages.__class__.__base__.__subclasses__() }}", "__class__"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "__init__"),
        ("{% include 'x' %}", "loader"),
        ("{{ 'x' * 10000000 }}", "too often"),
        ("{{ 10000000 * [1] }}", "too often"),
        ("{{ 9 ** (9 ** 9) }}", "too high"),
        ("{{ 'x'|center(10000000) }}", "too large"),
        ("{{ '%10000000s' % 'x' }}", "too large"),
        ("{{ '%10000000s'|format('x') }}", "too large"),
        ("{{ '%*d' % (10000000, 1) }}", "too large"),
        ("{{ range(10000000) }}", "range"),
        ("{% for i in range(90000) %}{{ 'x' * 900000 }}{% endfor %}", "characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests too deeply"),
    ],
)
def test_what_templates_may_not_do(source: str, word: str) -> None:
    with pytest.raises(ChatError, match="chat template") as caught:
        template(source).render(user("Hi"))
    assert word in str(caught.value), str(caught.value)


MANY = "{% set many = range(90000)|list %}"


@pytest.mark.parametrize(
    "endless",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{{ '' }}{% endfor %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        MANY + "{% for i in many %}{% for j in many %}{% endfor %}{% endfor %}",
        MANY + "{% for i in many %}{% for j in many if false %}x{% endfor %}{% endfor %}",
        MANY + "{% set all = [many] * 90000 %}{{ all|map('sum')|list|length }}",
        MANY + "{% set all = [many] * 90000 %}{{ all|select('in', [])|list|length }}",
        "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(80) }}",
        "{% for i in [1, 1] recursive %}{% if loop.depth < 80 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
        "{% set _check_time = 1 %}" + MANY + "{% for i in many %}{% for j in many %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_never_ends(monkeypatch: pytest.MonkeyPatch, endless: str) -> None:
    chat = template(endless)
    monkeypatch.setattr(sandbox, "MAX_RENDER_S", 0.05)
    started = time.monotonic()
    with pytest.raises(ChatError, match="runs for more than"):
        chat.render(user("Hi"))
    assert time.monotonic() - started < 2


def test_the_clock_of_one_rendering_is_not_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_RENDER_S", 0.2)
    chat = template("{% for m in messages %}{{ m.content|trim }}{% endfor %}")
    assert chat.render(user("Hi")) == "Hi"
    time.sleep(0.25)
    assert chat.render(user("Hi")) == "Hi"


def test_a_template_that_is_no_jinja() -> None:
    with pytest.raises(ChatError, match="not valid Jinja"):
        template("{% for %}")
    with pytest.raises(ChatError, match="not valid Jinja"):
        template("{% generation %}")


def test_templates_see_no_pictures() -> None:
    messages = parse_messages({"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (2, 2))}, "Hi"]})
    each = "|{{ c.type }} {{ c.keys()|list|length }} {{ c.text }}"
    source = "{% for m in messages %}{{ m.role }}{% for c in m.content %}" + each + "{% endfor %}{% endfor %}"
    assert template(source).render(messages) == "user|image 1 |text 2 Hi"


def test_variables_reach_the_template() -> None:
    chat = template("{{ enable_thinking }} {{ tools[0].name }} {{ bos_token }}", bos_token="<s>")
    assert chat.render(user("Hi"), enable_thinking=False, tools=[{"name": "f"}]) == "False f <s>"
    assert chat.render(user("Hi"), enable_thinking=1, tools=[{"name": "f"}], bos_token="<b>") == "1 f <b>"


def test_an_empty_conversation() -> None:
    with pytest.raises(ChatError, match="empty"):
        template().render([])


# --- templates that want text ------------------------------------------------------------------------------------

TEXT_ONLY = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


def test_templates_of_text_models_get_text() -> None:
    picture = {"type": "image", "image": Image.new("RGB", (2, 2))}
    messages = parse_messages({"role": "user", "content": ["What is <image>?", picture]})
    prompt = template(TEXT_ONLY).render(messages)
    assert prompt == "user: <image>\nWhat is <image>?\n"
    assert literal_texts(prompt) == ["<image>"] and prompt.literals[0][0] > 10
    assert template("{% for m in messages %}{{ m.content }}{% endfor %}").render(user("a", "b")) == "ab"


def test_a_text_template_has_no_place_for_pictures() -> None:
    messages = parse_messages({"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (2, 2))}]})
    with pytest.raises(ChatError, match="no place for pictures, and 1 came"):
        ChatTemplate(TEXT_ONLY).render(messages)


# --- typed text that looks like a special token ------------------------------------------------------------------


def test_typed_tokens_are_marked_and_the_templates_own_are_not() -> None:
    prompt = template().render(user("Is <image> or <|im_end|> special?"), add_generation_prompt=True)
    assert prompt == ("<|im_start|>user\n\nIs <image> or <|im_end|> special?<|im_end|>\n<|im_start|>assistant\n")
    assert literal_texts(prompt) == ["<image>", "<|im_end|>"]
    assert prompt.literals == ((21, 28), (32, 42))


def test_without_such_text_nothing_is_marked() -> None:
    assert template().render(user("plain text, a < b > c")).literals == ()


def test_the_example_of_the_docstring() -> None:
    source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}{% endfor %}"
    assert template(source).render(user("What is <image>?")).literals == ((25, 32),)


@pytest.mark.parametrize(
    "source", ["{{ m.content[0].text | trim | upper }}", "{{ m.content[0].text.strip().split('-')[1] }}"]
)
def test_marks_survive_what_templates_do_to_text(source: str) -> None:
    prompt = template("{% for m in messages %}" + source + "{% endfor %}").render(user(" a-<s>b<s> "))
    assert literal_texts(prompt) == ["<s>", "<s>"]


def test_roles_names_and_variables_are_typed_too() -> None:
    source = "{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.tool_calls[0].f }}{% endfor %}{{ note.a[0] }}"
    messages = parse_messages({"role": "<s>r", "content": "", "name": "<image>", "tool_calls": [{"f": "<|im_end|>"}]})
    prompt = template(source).render(messages, note={"a": ["<|im_start|>"]})
    assert literal_texts(prompt) == ["<s>", "<image>", "<|im_end|>", "<|im_start|>"]


@pytest.mark.parametrize("pieces", [("<ima", "ge>"), ("<", "image>"), ("<image", ">"), ("a<|im_st ", "art|>")])
def test_two_parts_cannot_join_to_a_token(pieces: tuple[str, str]) -> None:
    source = "{% for m in messages %}{% for c in m.content %}{{ c.text | trim }}{% endfor %}{% endfor %}"
    prompt = template(source).render(user(*pieces))
    assert prompt == "".join(piece.strip() for piece in pieces)
    token = "<image>" if "ima" in prompt else "<|im_start|>"
    place = prompt.index(token)
    assert any(start < place + len(token) and place < stop for start, stop in prompt.literals)


def test_a_text_and_the_template_cannot_join_to_a_token() -> None:
    prompt = template("{% for m in messages %}{{ m.content[0].text }}image>{% endfor %}").render(user("<"))
    assert prompt == "<image>" and prompt.literals == ((0, 1),)


def test_private_characters_in_the_text_are_kept() -> None:
    typed = "".join(map(chr, PRIVATE[:5])) + "<s>" + chr(PRIVATE[0])
    prompt = template(toys.VICUNA).render(user(typed))
    assert typed in prompt
    assert literal_texts(prompt) == ["<s>"]


def test_text_of_all_private_characters_is_refused_only_where_one_is_needed() -> None:
    everything = "".join(map(chr, PRIVATE))
    assert everything in template().render(user(everything))
    with pytest.raises(ChatError, match="private-use"):
        template().render(user(everything + "<s>"))


def test_rendered_prompts_survive_copies_and_are_plain_after_editing() -> None:
    prompt = template().render(user("<s>"))
    for again in (copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert again == prompt and again.literals == prompt.literals
    assert not hasattr(prompt + "x", "literals")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*TOKENS, "<", "<im", "age>", " ", "x", "\U000f0000", "é"]), max_size=12).map("".join))
def test_masking_and_unmasking_is_the_identity(text: str) -> None:
    masker = Masker(TOKENS, [text])
    masked = masker.mask(text)
    assert not any(token in masked for token in TOKENS)
    assert masker.unmask(masked) == text


# --- going on with a message -------------------------------------------------------------------------------------

STARTED: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Well, I"}]},
]


def test_going_on_with_the_final_message() -> None:
    prompt = template().render(parse_messages(STARTED), continue_final_message=True)
    assert prompt == "<|im_start|>user\n\nHi<|im_end|>\n<|im_start|>assistant\n\nWell, I"
    text = template(TEXT_ONLY).render(parse_messages(STARTED), continue_final_message=True)
    assert text == "user: Hi\nassistant: Well, I"


def test_the_template_decides_about_the_final_space() -> None:
    spaced = [STARTED[0], {"role": "assistant", "content": "Well, "}]
    kept = template().render(parse_messages(spaced), continue_final_message=True)
    assert kept.endswith("Well, ")
    trimming = "{% for m in messages %}{{ m.content[0].text | trim }}|{% endfor %}"
    assert template(trimming).render(parse_messages(spaced), continue_final_message=True) == "Hi|Well,"


def test_typed_tokens_in_a_message_that_goes_on() -> None:
    prompt = template().render(
        parse_messages({"role": "assistant", "content": "It is <image>"}), continue_final_message=True
    )
    assert literal_texts(prompt) == ["<image>"] and prompt.endswith("It is <image>")


def test_what_cannot_go_on() -> None:
    messages = parse_messages(STARTED)
    with pytest.raises(ChatError, match="exclude each other"):
        template().render(messages, continue_final_message=True, add_generation_prompt=True)
    nothing = parse_messages({"role": "assistant", "content": [{"type": "image"}]})
    with pytest.raises(ChatError, match="no text to continue"):
        template().render(nothing, continue_final_message=True)
    with pytest.raises(ChatError, match="leaves out the final message"):
        template("{{ messages[0].content[0].text }}").render(messages, continue_final_message=True)


@pytest.mark.parametrize("source", [toys.CHATML, toys.VICUNA, toys.IDEFICS2])
@pytest.mark.parametrize("final", ["Well, I", "Well, ", " ", "x\n"])
def test_going_on_equals_transformers(source: str, final: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    raw = [STARTED[0], {"role": "assistant", "content": [{"type": "text", "text": final}]}]
    (theirs,), _ = render_jinja_template([raw], chat_template=source, continue_final_message=True)
    assert template(source).render(parse_messages(raw), continue_final_message=True) == theirs
