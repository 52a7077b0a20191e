"""`behold show` and `behold models`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from behold.api.catalog import size_text
from behold.api.cli import main
from behold.api.session import open_checkpoint, open_processor
from behold.api.show import draw, look
from behold.api.turns import user_message
from behold.errors import ChatError
from tests import toys

QUESTION = "What do we see in this image?"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two pictures, wide.png and tall.png."""
    monkeypatch.chdir(tmp_path)
    toys.picture(64, 40).save("wide.png")
    toys.picture(30, 50, seed=1).save("tall.png")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, captured.out, captured.err


def test_the_resized_picture_is_what_pillow_makes_of_it() -> None:
    """Undoing the normalisation gives the very pixels of the resized picture."""
    processor = open_processor(open_checkpoint(toys.checkpoint("llava-siglip-qwen2")))
    image = toys.picture(64, 40)
    sight = look(processor, [user_message(image, QUESTION)])
    (seen,) = sight.pictures
    wanted = image.resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(seen.parts[0]), np.asarray(wanted))
    assert (seen.size, seen.tokens) == ((64, 40), 16)
    assert sight.short_text.count("<image>×16") == 1 and QUESTION in sight.short_text
    assert sight.text.count("<image>") == 16


def test_split_pictures_show_every_part_where_it_is() -> None:
    processor = open_processor(open_checkpoint(toys.checkpoint("idefics2-split")))
    images = [toys.picture(50, 40), toys.picture(30, 50, seed=1)]
    sight = look(processor, [user_message(images, QUESTION)])
    assert [len(seen.parts) for seen in sight.pictures] == [5, 5]
    assert [seen.tokens for seen in sight.pictures] == [25, 25]
    assert sight.prompt_tokens == len(processor.chat([user_message(images, QUESTION)]).ids)
    sheet = draw(sight, ["one", "two"])
    widest = max(sum(part.width for part in seen.parts) for seen in sight.pictures)
    tallest = sum(max(part.height for part in seen.parts) for seen in sight.pictures)
    assert sheet.width > widest and sheet.height > tallest
    whole = np.asarray(sight.pictures[0].parts[4])
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(sheet), whole.shape)
    assert any(np.array_equal(window, whole) for row in windows[:80, ::, 0] for window in row)


def test_nothing_to_draw_is_an_error() -> None:
    processor = open_processor(open_checkpoint(toys.checkpoint("idefics2-split")))
    with pytest.raises(ChatError, match="no picture"):
        draw(look(processor, [user_message([], QUESTION)]), [])


def test_show_draws_beside_you_and_prints_prompt_and_tokens(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    code, out, err = run(capsys, "show", "wide.png", "-m", toys.checkpoint("llava-siglip-qwen2"))
    assert (code, err) == (0, "")
    assert "wide.png · 64 × 40 → 24 × 24 · 16 tokens" in out
    assert "<image>×16" in out and QUESTION in out and "wide-seen.png" in out
    with Image.open(here / "wide-seen.png") as sheet:
        assert sheet.width > 24


def test_show_needs_no_weights(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    folder = toys.copy(toys.checkpoint("idefics2"), here / "model")
    (folder / "model.safetensors").unlink()
    code, out, _ = run(
        capsys, "show", "wide.png", "tall.png", "-p", "Which?", "-o", "both.webp", "-m", folder, "--json"
    )
    found = json.loads(out)
    assert code == 0 and (here / "both.webp").is_file()
    assert [image["name"] for image in found["images"]] == ["wide.png", "tall.png"]
    assert [image["tokens"] for image in found["images"]] == [5, 5]
    assert "Which?" in found["prompt"] and found["prompt"].count("<image>") == 10
    assert found["output"] == "both.webp"


@pytest.mark.parametrize(("detail", "tokens"), [("low", 5), ("auto", 5), ("high", 25)])
def test_show_at_a_detail(capsys: pytest.CaptureFixture[str], here: Path, detail: str, tokens: int) -> None:
    code, out, _ = run(
        capsys, "show", here / "wide.png", "-m", toys.checkpoint("idefics2"), "--json", "--detail", detail
    )
    assert (code, json.loads(out)["images"][0]["tokens"]) == (0, tokens)


def test_show_at_a_detail_that_is_none(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    code, _, err = run(capsys, "show", here / "wide.png", "--detail", "most")
    assert code == 2 and "low" in err and "high" in err


def test_a_place_that_cannot_be_drawn_to_is_an_error(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    model = toys.checkpoint("idefics2")
    code, _, err = run(capsys, "show", "wide.png", "-m", model, "-o", here / "no" / "folder.png")
    assert code == 1 and "folder.png" in err
    code, _, err = run(capsys, "show", "wide.png", "-m", model, "-o", "sheet.nonsense")
    assert code == 2 and "sheet.nonsense" in err
    code, _, err = run(capsys, "show", "absent.png", "-m", model)
    assert code == 1 and "absent.png" in err


# --- models ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub cache that holds a usable model, one of an unknown kind, one without weights, and a broken one."""
    cache = tmp_path / "hub"

    def add(name: str, fill: Path | None, config: str | None = None) -> None:
        snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / ("a" * 40)
        if fill:
            shutil.copytree(fill, snapshot)
        else:
            snapshot.mkdir(parents=True)
        if config is not None:
            (snapshot / "config.json").write_text(config)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)

    add("acme/good", toys.checkpoint("llava-siglip-qwen2"))
    add("acme/other", None, '{"model_type": "gpt2"}')
    add("acme/settings", None, '{"model_type": "llava"}')
    add("acme/torn", None, "{")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.usefixtures("cached")
def test_models_lists_families_and_what_is_cached(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "models", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["families"]["llava"] == ["llava"] and "idefics2" in found["families"]
    states = {model["name"]: (model["model_type"], model["state"]) for model in found["models"]}
    states.pop("demo", None)
    assert states == {
        "acme/good": ("llava", "ready"),
        "acme/other": ("gpt2", "not supported"),
        "acme/settings": ("llava", "settings only, no weights yet"),
        "acme/torn": ("?", "config.json cannot be read"),
    }


@pytest.mark.usefixtures("cached")
def test_models_is_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert code == 0
    assert lines["idefics2"].split() == ["idefics2", "idefics2"]
    assert lines["acme/good"].rstrip().endswith("MB")
    assert lines["acme/other"].endswith("not supported")


def test_models_without_any(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.devnull + "/none")
    assert run(capsys, "models")[0] == 0


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(40, "0.1 MB"), (1_234_000, "1.2 MB"), (12e6, "12 MB"), (1.72e9, "1.7 GB")]
)
def test_sizes_are_short(n_bytes: float, text: str) -> None:
    assert size_text(int(n_bytes)) == text


@pytest.mark.parametrize(("command", "said"), [("show", "[default: NAME-seen.png, here]"), ("ask", "[default: 32GB]")])
def test_help_shows_defaults_in_brackets(
    command: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To Rich, which draws it, brackets are markup unless they are escaped."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 300)
    assert said in run(capsys, command, "--help")[1]
