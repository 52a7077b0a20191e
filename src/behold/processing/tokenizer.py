"""Text to ids and back, thin over the `tokenizers` library, with the special tokens of a checkpoint's files.

The pipeline is the one tokenizer.json describes, except where transformers rebuilds it (see `_as_llama`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import tokenizers

from behold.chat.literals import Ranges, RenderedPrompt
from behold.errors import CheckpointError, CheckpointNotFoundError
from behold.processing.anchors import Anchors

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Model types whose tokenizer_class transformers believes: the others' files name classes that do not fit them.
_TRUSTED_LLAMA = frozenset({"idefics2"})
_LLAMA_CLASSES = (None, "LlamaTokenizer", "LlamaTokenizerFast")
_SPACE_BEFORE = re.compile(r" ([.?!,]|n't|'m|'s|'ve|'re)")


class Tokenizer:
    """One checkpoint's tokenizer. Encoding and decoding may be called from several threads.

    named: special tokens by role (bos_token, eos_token, …, and the checkpoint's own such as image_token).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        named: Mapping[str, str],
        *,
        padding_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        model_max_length: int | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.named_tokens = dict(named)
        self.padding_side = padding_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.model_max_length = model_max_length
        self.add_special_tokens(self.named_tokens.values())

    @classmethod
    def load(cls, files: CheckpointFiles) -> Tokenizer:
        """The tokenizer of a checkpoint folder.

        Raises:
            CheckpointNotFoundError: there is no tokenizer.json (the message says what there is instead).
            CheckpointError: tokenizer.json cannot be read.
        """
        path = files.folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointNotFoundError(_missing(files))
        config = files.tokenizer_config
        try:
            text = path.read_text(encoding="utf-8")
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} cannot be read ({error}). Download it again.") from error
        named = {**_default_named(files, text), **_named(config)}
        llama = _is_llama(files, text)
        if llama:
            _as_llama(backend, config)
        for _, token in sorted((int(key), value) for key, value in _added(config)):
            backend.add_tokens([token])
        backend.add_special_tokens(list(_extra(config)))
        length = config.get("model_max_length")
        return cls(
            backend,
            named,
            padding_side=config.get("padding_side") or ("left" if llama else "right"),
            clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces")),
            model_max_length=int(length) if isinstance(length, int | float) and length < 1e18 else None,
        )

    # --- encoding and decoding ---------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text. In a RenderedPrompt, special tokens that touch a literal range are plain text."""
        literals: Ranges = text.literals if isinstance(text, RenderedPrompt) else ()
        if literals:
            return self._anchors.encode(str(text), literals, add_special_tokens=add_special_tokens)
        return list(self.backend.encode(str(text), add_special_tokens=add_special_tokens).ids)

    def decode(
        self,
        ids: int | Iterable[int],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Text of ids (a list, an array or a tensor of one sequence). Ids beyond the vocabulary are left out."""
        listed = [ids] if isinstance(ids, int) else [int(identifier) for identifier in ids]
        text = str(self.backend.decode(listed, skip_special_tokens=skip_special_tokens))
        wanted = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        # As in transformers, BPE text is left alone: there, a space before a full stop was really written.
        if wanted and not isinstance(self.backend.model, tokenizers.models.BPE):
            text = _SPACE_BEFORE.sub(r"\1", text).replace(" ' ", "'")
        return text

    def batch_decode(
        self,
        sequences: Iterable[Iterable[int]],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """`decode` for each of several sequences."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    # --- the vocabulary ----------------------------------------------------------------------------------------

    def add_special_tokens(self, tokens: Iterable[str]) -> None:
        """Make these special; one that is not in the vocabulary gets the next free id."""
        missing = [token for token in dict.fromkeys(tokens) if token and token not in self.special_tokens]
        if missing:
            special = [tokenizers.AddedToken(token, special=True, normalized=False) for token in missing]
            self.backend.add_special_tokens(special)
            for cached in ("special_tokens", "special_ids", "_anchors"):
                self.__dict__.pop(cached, None)

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Every special token, in order of id, with its id."""
        added = sorted(self.backend.get_added_tokens_decoder().items())
        return {token.content: identifier for identifier, token in added if token.special}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    @cached_property
    def _anchors(self) -> Anchors:
        return Anchors(self.backend)

    def token_to_id(self, token: str) -> int | None:
        identifier: int | None = self.backend.token_to_id(token)
        return identifier

    def id_to_token(self, identifier: int) -> str | None:
        token: str | None = self.backend.id_to_token(identifier)
        return token

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int] | None:
        """One token's id, or the ids of several; the unknown token's id where there is one, for those not known."""
        if isinstance(tokens, str):
            identifier = self.token_to_id(tokens)
            return self.unk_token_id if identifier is None else identifier
        return [self.convert_tokens_to_ids(token) for token in tokens]  # type: ignore[misc]

    def convert_ids_to_tokens(self, ids: int | Iterable[int], skip_special_tokens: bool = False) -> Any:  # noqa: ANN401 - str for one id, list for several
        """One id's token, or the tokens of several ids."""
        if isinstance(ids, int):
            return self.id_to_token(ids)
        return [
            self.id_to_token(int(identifier))
            for identifier in ids
            if not (skip_special_tokens and int(identifier) in self.special_ids)
        ]

    @property
    def vocab_size(self) -> int:
        """Size of the base vocabulary, added tokens not counted (`len` counts them)."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def _named_id(self, role: str) -> int | None:
        token = self.named_tokens.get(role)
        return None if token is None else self.token_to_id(token)

    @property
    def bos_token(self) -> str | None:
        return self.named_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.named_tokens.get("eos_token")

    @property
    def unk_token(self) -> str | None:
        return self.named_tokens.get("unk_token")

    @property
    def pad_token(self) -> str | None:
        return self.named_tokens.get("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._named_id("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._named_id("pad_token")


def _is_llama(files: CheckpointFiles, text: str) -> bool:
    return (
        files.config.get("model_type") in _TRUSTED_LLAMA
        and files.tokenizer_config.get("tokenizer_class") in _LLAMA_CLASSES
        and '"ByteLevel"' not in text
    )


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
    backend.decoder = tokenizers.decoders.Sequence(
        [*steps, tokenizers.decoders.Strip(content=" ", left=1)] if prefix else steps
    )
    if isinstance(backend.model, tokenizers.models.BPE):
        model = backend.model
        model.fuse_unk, model.byte_fallback, model.unk_token, model.dropout = True, True, None, None
        backend.model = model


def _default_named(files: CheckpointFiles, text: str) -> dict[str, str]:
    return {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} if _is_llama(files, text) else {}


def _content(token: object) -> str | None:
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by role: the common roles, and a checkpoint's own (keys ending in _token, or a dict of extras)."""
    extras = config.get("extra_special_tokens")
    own = dict(extras) if isinstance(extras, Mapping) else {}
    own |= config.get("model_specific_special_tokens") or {}
    own |= {key: value for key, value in config.items() if key in NAMED_TOKENS or key.endswith("_token")}
    found = {key: _content(value) for key, value in own.items()}
    return {key: token for key, token in found.items() if token is not None}


def _extra(config: Mapping[str, Any]) -> Iterable[tokenizers.AddedToken]:
    for key in ("extra_special_tokens", "additional_special_tokens"):
        tokens = config.get(key)
        for token in tokens if isinstance(tokens, list) else ():
            if (content := _content(token)) is not None:
                yield tokenizers.AddedToken(content, special=True, normalized=False)


def _added(config: Mapping[str, Any]) -> Iterable[tuple[str, tokenizers.AddedToken]]:
    for identifier, token in (config.get("added_tokens_decoder") or {}).items():
        if isinstance(token, Mapping) and (content := _content(token)) is not None:
            flags = {key: bool(token[key]) for key in ("lstrip", "rstrip", "normalized", "single_word") if key in token}
            yield identifier, tokenizers.AddedToken(content, special=bool(token.get("special")), **flags)


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


def read_tokens(files: CheckpointFiles) -> dict[str, str]:
    """Special tokens by role as the files name them, without reading the vocabulary."""
    return _named(files.tokenizer_config)
