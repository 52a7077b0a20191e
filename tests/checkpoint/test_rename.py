"""Rename rules: one spelling out of many, and stable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from behold.checkpoint.files import CheckpointFiles
from behold.checkpoint.rename import RenameRules
from behold.checkpoint.stored import StoredTensor
from behold.checkpoint.weights import check
from behold.models.registry import FAMILIES, find_family
from tests import toys

RULES = RenameRules(prefixes=(("model.text.", "text."), ("head.", "text.head.")), drop=(".inv_freq",))
SHARED = Path(__file__).parents[3] / "shared" / "checkpoints"
PUBLISHED = ("llava-hf--llava-interleave-qwen-0.5b-hf", "llava-hf--llava-1.5-7b-hf", "HuggingFaceM4--idefics2-8b")


@pytest.mark.parametrize(
    ("found", "ours"),
    [
        ("model.text.norm.weight", "text.norm.weight"),
        ("head.weight", "text.head.weight"),
        ("tower.norm.weight", "tower.norm.weight"),
        ("model.text.layers.0.inv_freq", None),
    ],
)
def test_apply(found: str, ours: str | None) -> None:
    assert RULES.apply(found) == ours


def test_apply_all_shows_clashes() -> None:
    assert RULES.apply_all(["head.weight", "text.head.weight", "x.inv_freq"]) == {
        "text.head.weight": ["head.weight", "text.head.weight"]
    }


def test_rules_that_would_apply_again_are_refused() -> None:
    with pytest.raises(AssertionError, match="renamed again"):
        RenameRules(prefixes=(("a.", "b."), ("b.", "c.")))


def test_rules_print_as_a_table() -> None:
    assert str(RULES.dropping("head.")).splitlines() == [
        "model.text.* -> text.*",
        "head.* -> text.head.*",
        "*.inv_freq* is dropped",
        "*head.* is dropped",
    ]


@pytest.mark.parametrize("style", ["saved", "published"])
@pytest.mark.parametrize("name", toys.TOYS)
def test_renaming_twice_is_renaming_once(name: str, style: toys.Style) -> None:
    rules = find_family(toys.TOYS[name].family).rename
    for found in toys.read_weights(toys.checkpoint(name, style=style)):
        ours = rules.apply(found)
        assert ours is None or rules.apply(ours) == ours


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_may_or_may_not_carry_the_model_prefix(family: str) -> None:
    """transformers has written names with and without it."""
    rules = find_family(family).rename
    for text in ("language_model", "text_model"):
        bare, prefixed = rules.apply(f"{text}.layers.0.x"), rules.apply(f"model.{text}.layers.0.x")
        if family == ("llava" if text == "language_model" else "idefics2"):
            assert bare == prefixed == f"{text}.layers.0.x"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published weight names are not beside the repository")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_and_shapes_fill_the_model_exactly(name: str) -> None:
    files = CheckpointFiles.read(SHARED / name)
    family = find_family(files.config)
    with torch.device("meta"):
        model = family.build(family.read_config(files.config))
    shapes = json.loads((SHARED / name / "weight_shapes.json").read_text())["tensors"]
    stored = {key: StoredTensor(key, Path("weights"), "F32", tuple(shape), 0, 0) for key, shape in shapes.items()}
    assert len(check(model, stored, family.rename)) == len(shapes)
