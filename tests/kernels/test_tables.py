"""Rows of tables are those that torch looks up."""

from __future__ import annotations

import pytest
import torch

from behold.kernels import tables
from behold.nn.embedding import embedding
from behold.quant.linear import QuantizedEmbedding

IDS = torch.tensor([[3, 0, 69], [3, 3, 41]])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("ids", [IDS, IDS.T, IDS[:0], IDS[0, :1]])
def test_rows(ids: torch.Tensor) -> None:
    table = embedding(70, 50)
    torch.nn.init.normal_(table.weight)
    small = QuantizedEmbedding.of(table)
    with torch.inference_mode():
        assert tables.suits(ids) and not tables.suits(ids.int())
        assert torch.equal(tables.rows_f32(ids, table.weight), table.weight[ids])
        assert torch.equal(table(ids), table.weight[ids]) and torch.equal(table(ids.int()), table.weight[ids])
        torch.testing.assert_close(small(ids), small.dequantized()[ids], atol=0, rtol=0)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("wrong", [-1, 70])
def test_what_is_no_row(wrong: int) -> None:
    table, ids = embedding(70, 8), torch.tensor([1, wrong])
    small = QuantizedEmbedding.of(table)
    with torch.inference_mode():
        for look in (table, small):
            with pytest.raises(IndexError, match=f"{min(wrong, 1)} to {max(wrong, 1)}, in a table with rows 0 to 69"):
                look(ids)


def test_a_table_learns() -> None:
    table = embedding(70, 8)
    table(IDS).sum().backward()
    assert table.weight.grad is not None and table.weight.grad[3].tolist() == [3.0] * 8
