"""`processor.tokenizer`: the checkpoint's tokenizer with the calls that code for transformers makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, cast, overload

import torch

from behold.api.hf.batch import Batch, TensorKind, check_kind, integers
from behold.api.hf.padding import Padding, Side, read_padding, read_side
from behold.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    from behold.processing.tokenizer import Tokenizer

Ids: TypeAlias = "int | Sequence[int] | Sequence[Sequence[int]] | torch.Tensor | np.ndarray"


class HFTokenizer:
    """Text to ids and back. Shared by threads as long as nobody changes its settings.

    Settable: `padding_side` ("left" by default: answers follow their prompts), `pad_token`, `pad_token_id`.
    """

    # Settings that are not listed here cannot be set, as nothing would come of it.
    __slots__ = ("_padding_side", "pad_token_id", "tokenizer")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.pad_token_id: int | None = tokenizer.pad_token_id
        self._padding_side: Side = "left"

    # --- text to ids ---------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: TensorKind = None,
        return_attention_mask: bool | None = None,
    ) -> Batch:
        """input_ids and attention_mask of a text (lists of integers) or of several (lists of lists, or (B, T)).

        Raises:
            OptionError: a value that is unknown or cannot be honoured.
        """
        check_kind(return_tensors)
        side = self._padding_side if padding_side is None else read_side(padding_side)
        settings = read_padding(
            padding, side=side, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of, truncation=truncation
        )
        rows = [self.tokenizer.encode(row, add_special_tokens) for row in texts_of(text)]
        batch = self.batch(rows, settings, return_tensors, masks=return_attention_mask is not False)
        if isinstance(text, str) and return_tensors is None:
            return Batch({name: value[0] for name, value in batch.items()})
        return batch

    def batch(self, rows: Sequence[Sequence[int]], padding: Padding, kind: TensorKind, *, masks: bool = True) -> Batch:
        """Rows of ids as `input_ids` and `attention_mask`, padded."""
        ids, mask = padding.rows(rows, self.pad_token_id)
        batch = Batch({"input_ids": integers("input_ids", ids, kind)})
        if masks:
            batch["attention_mask"] = integers("attention_mask", mask, kind)
        return batch

    def encode(
        self, text: str, add_special_tokens: bool = True, return_tensors: TensorKind = None
    ) -> list[int] | torch.Tensor:
        """The ids of one text: a list, or (1, T) with return_tensors="pt"."""
        ids = self.tokenizer.encode(text, add_special_tokens)
        return ids if return_tensors is None else cast("torch.Tensor", integers("input_ids", [ids], return_tensors))

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int] | None:
        """The id of a token, or of each; that of the unknown token, else None, where there is no such token."""
        return self.tokenizer.convert_tokens_to_ids(tokens)

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> object:
        """The token of an id, or of each."""
        return self.tokenizer.convert_ids_to_tokens(ids, skip_special_tokens)

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without those that would be added around it."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [str(self.tokenizer.id_to_token(token)) for token in ids]

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id."""
        return self.tokenizer.get_vocab()

    # --- ids to text ---------------------------------------------------------------------------------------------

    @overload
    def decode(
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str: ...
    @overload
    def decode(
        self, token_ids: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str | list[str]: ...
    def decode(
        self, token_ids: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str | list[str]:
        """The text of ids, or the texts of rows of ids; lists, tensors and arrays."""
        ids = _as_lists(token_ids)
        if ids and isinstance(ids[0], list):
            return [self.tokenizer.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        return self.tokenizer.decode(cast("list[int]", ids), skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The texts of rows of ids; always a list."""
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [texts] if isinstance(texts, str) else texts

    # --- what it knows -------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        """How many ids the vocabulary has, without added tokens; `len` counts those too."""
        return self.tokenizer.vocab_size

    @property
    def padding_side(self) -> Side:
        """Where padding goes; "left" unless set."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._padding_side = read_side(side)

    @property
    def pad_token(self) -> str | None:
        """The token that fills short rows."""
        return self._text(self.pad_token_id)

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise OptionError(f"pad_token={token!r} is not a token of this tokenizer; use one that is, e.g. eos_token.")
        self.pad_token_id = found

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token

    @property
    def bos_token(self) -> str | None:
        """The token that starts a text; None where the model has none."""
        return self.tokenizer.bos_token

    @property
    def bos_token_id(self) -> int | None:
        """The id that starts a text."""
        return self.tokenizer.bos_token_id

    @property
    def unk_token(self) -> str | None:
        """The token for what is not in the vocabulary; None where everything is."""
        return self.tokenizer.unk_token

    @property
    def unk_token_id(self) -> int | None:
        """The id for what is not in the vocabulary."""
        return self.tokenizer.unk_token_id

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by role."""
        return dict(self.tokenizer.named_tokens)

    @property
    def all_special_tokens(self) -> list[str]:
        """Every token that `skip_special_tokens` leaves out, in order of id."""
        return list(self.tokenizer.special_tokens)

    @property
    def all_special_ids(self) -> list[int]:
        """Every id that `skip_special_tokens` leaves out, in order."""
        return sorted(self.tokenizer.special_ids)

    def _text(self, token: int | None) -> str | None:
        return None if token is None else self.tokenizer.id_to_token(token)


def texts_of(text: str | Sequence[str]) -> list[str]:
    """One text or several, as a list.

    Raises:
        OptionError: anything else.
    """
    rows = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else None
    if rows is None or not all(isinstance(row, str) for row in rows):
        raise OptionError(f"text={type(text).__name__} is not a string or a list of strings.")
    return rows


def _as_lists(ids: Ids) -> list[int] | list[list[int]]:
    if isinstance(ids, int):
        return [ids]
    if hasattr(ids, "tolist"):
        found = ids.tolist()
        return [found] if isinstance(found, int) else cast("list[int]", found)
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in ids]
    return cast("list[int] | list[list[int]]", [list(row) if isinstance(row, tuple) else row for row in rows])
