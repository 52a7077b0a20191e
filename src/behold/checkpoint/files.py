"""The JSON files of a checkpoint folder as one record, in one spelling. No torch.

Old and new spellings are told apart here and nowhere else:

    torch_dtype → dtype · image_token_index → image_token_id (config.json, all levels)
    processor_config.json with a nested image_processor wins over preprocessor_config.json
    chat template: inside processor_config.json, then chat_template.json, chat_template.jinja, tokenizer_config.json
    special tokens as {"content": …} → plain strings

The order of precedence is that of transformers 5 (processing_utils, image_processing_base).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from behold.errors import CheckpointError, CheckpointNotFoundError

Json = dict[str, Any]

_RENAMED_KEYS = {"torch_dtype": "dtype", "image_token_index": "image_token_id"}
_ADDED_TOKENS = re.compile(rb'"added_tokens"\s*:\s*(?=\[)')
_PIECE_BYTES = 1 << 16
_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What a folder's JSON files say, read once. Missing optional files are empty dicts.

    config: config.json in the new spelling. generation: generation_config.json. preprocessor: the image processor's
    settings. processor: the processor's own settings. chat_template: the Jinja source, or None.
    eos_token_ids: every id that ends an answer, from the generation config, the config and the tokenizer together.
    """

    folder: Path
    config: Json
    generation: Json
    preprocessor: Json
    processor: Json
    tokenizer_config: Json
    chat_template: str | None
    eos_token_ids: frozenset[int]

    @classmethod
    def read(cls, folder: str | Path) -> CheckpointFiles:
        """Reads a folder in Hugging Face layout.

        Raises:
            CheckpointNotFoundError: there is no such folder, or it has no config.json.
            CheckpointError: a file is not valid JSON, or config.json does not say which model it is.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointNotFoundError(f"There is no folder {str(folder)!r}.")
        if not (folder / "config.json").is_file():
            raise CheckpointNotFoundError(
                f"{str(folder)!r} has no config.json: it is not a checkpoint in Hugging Face layout. Give the folder "
                "that holds config.json, the tokenizer and the *.safetensors files."
            )
        config: Json = _respell(_read_json(folder / "config.json"))
        if not isinstance(config.get("model_type"), str):
            raise CheckpointError(f"{folder / 'config.json'} has no model_type, so the kind of model is unknown.")
        generation = _read_json(folder / "generation_config.json")
        processor = _read_json(folder / "processor_config.json")
        nested = processor.pop("image_processor", None)
        preprocessor = nested if isinstance(nested, dict) else _read_json(folder / "preprocessor_config.json")
        tokenizer_config = _tokenizer_config(folder)
        return cls(
            folder=folder,
            config=config,
            generation=generation,
            preprocessor=preprocessor,
            processor={key: value for key, value in processor.items() if key != "chat_template"},
            tokenizer_config=tokenizer_config,
            chat_template=_chat_template(folder, processor, tokenizer_config),
            eos_token_ids=_eos_token_ids(folder, config, generation, tokenizer_config),
        )


def _read_json(path: Path) -> Json:
    """The object in a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
    return value


def _respell(value: Any) -> Any:  # noqa: ANN401 - whatever a JSON file holds
    """Old keys to new ones at every level of a config; a new key that is there and not null wins."""
    if not isinstance(value, dict):
        return value
    new = {key: _respell(item) for key, item in value.items() if key not in _RENAMED_KEYS}
    for old_key, new_key in _RENAMED_KEYS.items():
        if old_key in value and new.get(new_key) is None:
            new[new_key] = value[old_key]
    return new


def _tokenizer_config(folder: Path) -> Json:
    """tokenizer_config.json with special tokens as strings, completed from special_tokens_map.json."""
    config = _read_json(folder / "tokenizer_config.json")
    special = _read_json(folder / "special_tokens_map.json")
    for key in _TOKEN_KEYS:
        if config.get(key) is None and special.get(key) is not None:
            config[key] = special[key]
        if isinstance(config.get(key), dict):
            config[key] = config[key].get("content")
    return config


def _chat_template(folder: Path, processor: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str | None:
    """The default template, from the first place that has one."""
    legacy = _read_json(folder / "chat_template.json").get("chat_template")
    jinja = folder / "chat_template.jinja"
    raw = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
    sources = (processor.get("chat_template"), legacy, raw, tokenizer_config.get("chat_template"))
    return next((template for template in map(_default_template, sources) if template), None)


def _default_template(source: Any) -> str | None:  # noqa: ANN401 - whatever a JSON file holds
    """A template, or the default one of several: {"default": …} or [{"name": "default", "template": …}]."""
    if isinstance(source, list):
        source = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
    if isinstance(source, dict):
        source = source.get("default")
    return source if isinstance(source, str) else None


def _eos_token_ids(folder: Path, config: Json, generation: Json, tokenizer_config: Json) -> frozenset[int]:
    found: set[int] = set()
    for source in (generation, config, config.get("text_config")):
        if isinstance(source, dict):
            value = source.get("eos_token_id")
            found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    token = tokenizer_config.get("eos_token")
    if isinstance(token, str):
        found.update(identifier for text, identifier in _added_tokens(folder, tokenizer_config) if text == token)
    return frozenset(found)


def _added_tokens(folder: Path, tokenizer_config: Json) -> Iterator[tuple[str, int]]:
    """(text, id) of every token that was added to, or is special in, the tokenizer."""
    for identifier, token in (tokenizer_config.get("added_tokens_decoder") or {}).items():
        yield str(token.get("content") if isinstance(token, dict) else token), int(identifier)
    for text, identifier in _read_json(folder / "added_tokens.json").items():
        yield text, identifier
    if not tokenizer_config.get("added_tokens_decoder"):  # tokenizer.json is large: read it only where it must be
        for token in _tokenizers_added(folder / "tokenizer.json"):
            yield token["content"], token["id"]


def _tokenizers_added(path: Path) -> list[Json]:
    """The list "added_tokens" of a tokenizer.json. It stands before the vocabulary, which is not parsed for it."""
    data = path.read_bytes() if path.is_file() else b""
    found = _ADDED_TOKENS.search(data)
    start, size = (found.end(), _PIECE_BYTES) if found else (len(data), 0)
    while start < len(data):
        with suppress(json.JSONDecodeError):  # of a piece that ends inside the list
            value: list[Json] = json.JSONDecoder().raw_decode(data[start : start + size].decode(errors="replace"))[0]
            return value
        if start + size >= len(data):
            break
        size *= 2
    return _read_json(path).get("added_tokens") or []
