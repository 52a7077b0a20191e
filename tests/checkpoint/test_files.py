"""One record from many spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from behold.checkpoint.files import CheckpointFiles
from behold.errors import CheckpointError, CheckpointNotFoundError
from behold.models.registry import find_family
from tests import toys


def folder_of(path: Path, **files: Any) -> Path:
    """A folder with the given JSON files (`config` becomes config.json); a string is written as it is."""
    path.mkdir(exist_ok=True)
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (path / (name.replace("__", ".") if "__" in name else f"{name}.json")).write_text(text)
    return path


def read(path: Path, **files: Any) -> CheckpointFiles:
    return CheckpointFiles.read(folder_of(path, **({"config": {"model_type": "llava"}} | files)))


@pytest.mark.parametrize("name", toys.TOYS)
def test_saved_and_published_spellings_say_the_same(name: str) -> None:
    saved = CheckpointFiles.read(toys.checkpoint(name))
    published = CheckpointFiles.read(toys.checkpoint(name, style="published"))
    family = find_family(saved.config)
    assert family.read_config(saved.config) == family.read_config(published.config)
    assert saved.preprocessor == published.preprocessor
    assert saved.processor == published.processor
    assert saved.chat_template == published.chat_template
    assert saved.eos_token_ids == published.eos_token_ids
    assert saved.config["dtype"] == published.config["dtype"] == "float32"


def test_old_keys_become_new_ones_at_every_level(tmp_path: Path) -> None:
    config = {
        "model_type": "llava",
        "torch_dtype": "float16",
        "image_token_index": 7,
        "text_config": {"torch_dtype": "bfloat16", "dtype": "float32"},
    }
    found = read(tmp_path, config=config).config
    text = {"dtype": "float32"}
    assert found == {"model_type": "llava", "dtype": "float16", "image_token_id": 7, "text_config": text}


def test_a_new_key_that_is_null_gives_way(tmp_path: Path) -> None:
    config = {"model_type": "llava", "image_token_id": None, "image_token_index": 7}
    assert read(tmp_path, config=config).config["image_token_id"] == 7


def test_nested_image_processor_wins(tmp_path: Path) -> None:
    files = read(
        tmp_path,
        preprocessor_config={"size": 1},
        processor_config={"image_processor": {"size": 2}, "patch_size": 14, "chat_template": "t"},
    )
    assert files.preprocessor == {"size": 2}
    assert files.processor == {"patch_size": 14}


TEMPLATES = {
    "processor_config": {"chat_template": "processor"},
    "chat_template": {"chat_template": "legacy"},
    "chat_template__jinja": "jinja",
    "tokenizer_config": {"chat_template": [{"name": "other", "template": "o"}, {"name": "default", "template": "tok"}]},
}


@pytest.mark.parametrize(
    ("skipped", "expected"), [(0, "processor"), (1, "legacy"), (2, "jinja"), (3, "tok"), (4, None)]
)
def test_chat_template_comes_from_the_first_place_that_has_one(
    tmp_path: Path, skipped: int, expected: str | None
) -> None:
    assert read(tmp_path, **dict(list(TEMPLATES.items())[skipped:])).chat_template == expected


def test_eos_ids_are_united(tmp_path: Path) -> None:
    files = read(
        tmp_path,
        config={"model_type": "llava", "eos_token_id": 3, "text_config": {"eos_token_id": [4, 5]}},
        generation_config={"eos_token_id": [2, 32002]},
        tokenizer_config={"eos_token": {"content": "</s>"}, "added_tokens_decoder": {"9": {"content": "</s>"}}},
    )
    assert files.eos_token_ids == {2, 3, 4, 5, 9, 32002}


@pytest.mark.parametrize(
    "where",
    [
        {"added_tokens": {"<|end|>": 6, "other": 7}},
        {"tokenizer": {"added_tokens": [{"content": "other", "id": 7}, {"content": "<|end|>", "id": 6}]}},
    ],
)
def test_the_tokenizers_eos_is_found_in_older_and_newer_files(tmp_path: Path, where: dict[str, Any]) -> None:
    assert read(tmp_path, tokenizer_config={"eos_token": "<|end|>"}, **where).eos_token_ids == {6}


def test_a_long_list_of_added_tokens_is_read_to_its_end(tmp_path: Path) -> None:
    tokens = [{"content": f"é{'x' * number}", "id": number} for number in range(700)]
    files = read(tmp_path, tokenizer_config={"eos_token": tokens[-1]["content"]}, tokenizer={"added_tokens": tokens})
    assert files.eos_token_ids == {699}


def test_special_tokens_map_completes_the_tokenizer_config(tmp_path: Path) -> None:
    files = read(
        tmp_path,
        tokenizer_config={"eos_token": "</s>", "bos_token": None},
        special_tokens_map={"eos_token": "<other>", "bos_token": {"content": "<s>"}},
    )
    assert files.tokenizer_config["eos_token"] == "</s>"
    assert files.tokenizer_config["bos_token"] == "<s>"


def test_optional_files_may_be_absent(tmp_path: Path) -> None:
    files = read(tmp_path)
    assert files.generation == files.preprocessor == files.processor == files.tokenizer_config == {}
    assert files.chat_template is None
    assert files.eos_token_ids == frozenset()


def test_no_folder_and_no_config_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no folder"):
        CheckpointFiles.read(tmp_path / "none")
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json"):
        CheckpointFiles.read(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [("{", "not valid JSON"), ("[1]", "holds a list"), ("{}", "model_type"), ('{"model_type": 3}', "model_type")],
)
def test_a_damaged_config_is_an_error(tmp_path: Path, config: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        CheckpointFiles.read(folder_of(tmp_path, config=config))


SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published configuration files are not beside the repository")
@pytest.mark.parametrize(
    ("name", "eos"),
    [
        ("llava-hf--llava-interleave-qwen-0.5b-hf", {151645}),
        ("llava-hf--llava-1.5-7b-hf", {2}),
        ("HuggingFaceM4--idefics2-8b", {2, 32002}),
    ],
)
def test_published_files(name: str, eos: set[int]) -> None:
    files = CheckpointFiles.read(SHARED / name)
    assert files.eos_token_ids == eos
    assert files.preprocessor["image_processor_type"].endswith("ImageProcessor")
    assert files.chat_template is not None and "content" in files.chat_template
