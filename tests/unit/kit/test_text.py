"""kit.text: making untrusted text safe to show and to store."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import text


@given(st.text(max_size=60), st.integers(min_value=1, max_value=70))
def test_sanitise_equals_escaping_the_whole_text_and_cutting_it(found: str, limit: int) -> None:
    assert text.sanitise(found, limit) == text.clip(text.escape(found), limit)


def test_only_text_that_is_shown_is_escaped() -> None:
    """Half a megabyte of control characters costs no more than the shown part."""

    class Counted(str):
        """A string that counts the characters taken from it."""

        __slots__ = ()
        taken: list[int] = []  # noqa: RUF012 - one test's

        def __getitem__(self, key: object) -> str:
            found = str(self)[key]  # type: ignore[index]
            self.taken.append(len(found))
            return found

    assert text.sanitise(Counted("\x7f" * (1 << 19)), 40) == "\\x7f" * 9 + "\\x7…"
    assert Counted.taken == [41]


def test_cache_of_escapes_is_bounded() -> None:
    """Characters beyond the bound are escaped as before."""
    everything = "".join(map(chr, range(0x250, 0x3000)))
    shown = text.escape(everything)
    assert text.escape(everything[::-1]) != shown
    assert text.escape(everything) == shown
    assert len(text._ESCAPES) <= text._ESCAPES.MOST
    assert text.escape("a\u00ad\u3164é\ud800\U000e0001") == "a\\xad\\u3164é\\ud800\\U000e0001"
