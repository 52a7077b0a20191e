"""A checkpoint's tokenizer files to the `tokenizers` pipeline and the special tokens they name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import tokenizers

from behold.errors import CheckpointError, CheckpointNotFoundError

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles

_LLAMA_CLASSES = (None, "LlamaTokenizer", "LlamaTokenizerFast")
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
# Model types whose tokenizer_class transformers believes: other multimodal files name classes that do not fit them.
_TRUSTED = frozenset({"idefics2"})


def read_backend(files: CheckpointFiles) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The pipeline with all added tokens, and the special tokens by role.

    Raises:
        CheckpointNotFoundError: there is no tokenizer.json; the message says what there is instead.
        CheckpointError: tokenizer.json cannot be read.
    """
    path = files.folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointNotFoundError(_missing(files))
    try:
        data = path.read_bytes()
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path} cannot be read ({error}). Download it again.") from error
    named = read_tokens(files)
    if is_llama(files) and b'"ByteLevel"' not in data:
        _as_llama(backend, files.tokenizer_config)
        named = {**_LLAMA_TOKENS, **named}
    for _, token in sorted(_added(files.tokenizer_config), key=lambda item: item[0]):
        backend.add_tokens([token])
    backend.add_special_tokens(list(_extra(files.tokenizer_config)))
    return backend, named


def read_tokens(files: CheckpointFiles) -> dict[str, str]:
    """Special tokens by role as the files name them: the common roles (bos_token, eos_token …), and a checkpoint's own
    (other keys that end in _token, or a mapping of extras). The vocabulary is not read."""
    config = files.tokenizer_config
    extras = config.get("extra_special_tokens")
    found = dict(extras) if isinstance(extras, Mapping) else {}
    found |= config.get("model_specific_special_tokens") or {}
    found |= {key: value for key, value in config.items() if key.endswith("_token")}
    contents = {key: _content(value) for key, value in found.items()}
    return {key: token for key, token in contents.items() if token is not None}


def is_llama(files: CheckpointFiles) -> bool:
    """Whether transformers makes a LlamaTokenizer of these files."""
    tokenizer_class = files.tokenizer_config.get("tokenizer_class")
    return files.config.get("model_type") in _TRUSTED and tokenizer_class in _LLAMA_CLASSES


def _as_llama(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Replace the pipeline by the one transformers 5 builds for a LlamaTokenizer, whatever tokenizer.json says.

    It matters after a special token: files written by older versions put a space in front of the text there, this
    pipeline does not (legacy=false), and idefics2's own processor writes one where it is needed.
    """
    prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    backend.normalizer = None
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
    ]
    if prefix:
        steps.append(tokenizers.decoders.Strip(content=" ", left=1))
    backend.decoder = tokenizers.decoders.Sequence(steps)
    model = backend.model
    if isinstance(model, tokenizers.models.BPE):
        model.fuse_unk, model.byte_fallback, model.unk_token, model.dropout = True, True, None, None
        backend.model = model


def _content(token: object) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _extra(config: Mapping[str, Any]) -> Iterator[tokenizers.AddedToken]:
    for key in ("extra_special_tokens", "additional_special_tokens"):
        tokens = config.get(key)
        for token in tokens if isinstance(tokens, list) else ():
            if (content := _content(token)) is not None:
                yield tokenizers.AddedToken(content, special=True, normalized=False)


def _added(config: Mapping[str, Any]) -> Iterator[tuple[int, tokenizers.AddedToken]]:
    for identifier, token in (config.get("added_tokens_decoder") or {}).items():
        if isinstance(token, Mapping) and (content := _content(token)) is not None:
            flags = {key: bool(token[key]) for key in ("lstrip", "rstrip", "normalized", "single_word") if key in token}
            yield int(identifier), tokenizers.AddedToken(content, special=bool(token.get("special")), **flags)


def _missing(files: CheckpointFiles) -> str:
    folder = files.folder
    there = [name for name in ("tokenizer.model", "vocab.json", "merges.txt") if (folder / name).is_file()]
    remedy = (
        f"{' and '.join(there)} alone cannot be read; convert once, with transformers and sentencepiece installed: "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})."
        if there
        else "Download it from where the checkpoint came from."
    )
    return f"{str(folder)!r} has no tokenizer.json. {remedy}"
