"""Rows that are read from a file when they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from behold.checkpoint.stored import StoredRows, StoredTensor, fetched
from behold.checkpoint.weights import stored_tensors
from behold.errors import WeightsError


def stored(folder: Path, tensor: torch.Tensor) -> StoredTensor:
    """The tensor in a file, behind another one."""
    save_file({"a": torch.ones(3, dtype=torch.uint8), "b": tensor}, folder / "model.safetensors")
    return stored_tensors(folder)["b"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rows_are_those_of_the_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    whole = torch.randn(7, 5).to(dtype)
    rows = fetched(stored(tmp_path, whole))
    assert isinstance(rows, StoredRows)
    assert (rows.shape, rows.dtype, rows.device, rows.nbytes) == (whole.shape, dtype, whole.device, whole.nbytes)
    for piece in (slice(None), slice(0, 3), slice(3, 7), slice(5, 99), slice(7, 9)):
        assert torch.equal(rows[piece], whole[piece])
    rows[:].zero_()
    assert torch.equal(rows[:], whole), "each is in memory of its own"


@pytest.mark.parametrize("shape", [(5,), (2, 2, 2), (0, 4), ()])
def test_what_is_no_matrix_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    read = fetched(stored(tmp_path, tensor))
    assert isinstance(read, torch.Tensor) and torch.equal(read, tensor)


def test_a_file_that_is_cut_off_meanwhile(tmp_path: Path) -> None:
    rows = fetched(stored(tmp_path, torch.randn(6, 4)))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    assert rows[:4].shape == (4, 4)
    with pytest.raises(WeightsError, match="Download it again"):
        rows[4:]
