"""Text to ids and back, thin over the `tokenizers` library, with the special tokens of a checkpoint's files.

The pipeline is the one tokenizer.json describes, except where transformers rebuilds it (see tokenizer_files).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import tokenizers

from behold.chat.literals import Ranges, RenderedPrompt
from behold.processing.anchors import Anchors
from behold.processing.tokenizer_files import is_llama, read_backend

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles

_SURROGATE = re.compile("[\ud800-\udfff]")
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
        backend, named = read_backend(files)
        config = files.tokenizer_config
        length = config.get("model_max_length")
        return cls(
            backend,
            named,
            padding_side=config.get("padding_side") or ("left" if is_llama(files) else "right"),
            clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces")),
            # transformers writes 1e30 for "no limit"
            model_max_length=int(length) if isinstance(length, int | float) and length < 1e18 else None,
        )

    # --- encoding and decoding ---------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text. In a RenderedPrompt, special tokens that touch a literal range are plain text."""
        literals: Ranges = text.literals if isinstance(text, RenderedPrompt) else ()
        # Half of a surrogate pair is no text; JSON lets it through, and the library would fail on it.
        text = _SURROGATE.sub("\ufffd", text)
        if literals:
            return self._anchors.encode(text, literals, add_special_tokens=add_special_tokens)
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

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
