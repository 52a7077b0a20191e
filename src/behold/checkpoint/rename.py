"""Rules that turn the weight names found in files into the names of our modules. Data only, no torch.

    rules = RenameRules(prefixes=(("language_model.model.", "language_model."),), drop=(".rotary_emb.inv_freq",))
    rules.apply("language_model.model.norm.weight")   # "language_model.norm.weight"

Every family lists all spellings it reads: those of the published files and those that transformers writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class RenameRules:
    """prefixes: (found, ours) pairs; the first that fits is applied, once. drop: parts of names that are never used.

    Applying the rules twice gives the same as applying them once, because no result starts with a `found` prefix;
    the constructor checks that.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    drop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for _, ours in self.prefixes:
            for found, target in self.prefixes:
                if found == ours == target:
                    continue
                assert not ours.startswith(found), f"{ours!r} would be renamed again by {found!r}"

    def apply(self, name: str) -> str | None:
        """Our name for a weight, or None where it is dropped."""
        if any(part in name for part in self.drop):
            return None
        for found, ours in self.prefixes:
            if name.startswith(found):
                return ours + name[len(found) :]
        return name

    def apply_all(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Our names with the found names that lead to each, in the order given; more than one is a clash."""
        table: dict[str, list[str]] = {}
        for name in names:
            ours = self.apply(name)
            if ours is not None:
                table.setdefault(ours, []).append(name)
        return table

    def dropping(self, *parts: str) -> RenameRules:
        """The same rules that drop further names."""
        return replace(self, drop=(*self.drop, *parts))

    def __str__(self) -> str:
        lines = [f"{found}* -> {ours}*" for found, ours in self.prefixes]
        return "\n".join([*lines, *(f"*{part}* is dropped" for part in self.drop)])
