"""Stop strings: nothing of them is ever shown, and nothing else is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from behold.engine.stops import StopStrings


def test_a_false_start_is_shown_after_all() -> None:
    stops = StopStrings(("END", "\n\n"))
    assert [stops.add(text) for text in ("to the E", "ast\n", "er EN", "D of")] == ["to the ", "East", "\ner ", ""]
    assert stops.hit == "END"
    assert stops.add("more") == stops.finish() == ""


def test_the_earliest_match_wins() -> None:
    stops = StopStrings(("later", "now"))
    assert stops.add("a now and later") == "a "
    assert stops.hit == "now"


def test_what_was_held_back_comes_at_the_end() -> None:
    stops = StopStrings(("ABC",))
    assert stops.add("xAB") == "x"
    assert stops.finish() == "AB"


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
    strings=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_pieces_join_to_the_text_before_the_first_match(pieces: list[str], strings: list[str]) -> None:
    """Compared after every piece: what is shown is a prefix of the cut text, whatever the pieces are."""
    stops = StopStrings(strings)
    shown = ""
    for i, piece in enumerate(pieces):
        shown += stops.add(piece)
        text = "".join(pieces[: i + 1])
        ends = [text.find(stop) for stop in strings if stop in text]
        # A match that begins in text held back for an earlier, longer candidate may be found late, never early.
        assert (stops.hit is not None) == bool(ends)
        if ends:
            assert shown == text[: len(shown)] and not any(stop in shown for stop in strings)
            break
        assert text.startswith(shown)
        tail = text[len(shown) :]
        assert not tail or any(stop.startswith(tail) for stop in strings), "held back without need"
    else:
        assert shown + stops.finish() == "".join(pieces)
