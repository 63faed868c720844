"""latticed.settings.live: each setting either takes effect at a reload, or is named as waiting for a restart."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest

from latticed import settings
from latticed.settings import live

BASE = settings.load(None, {"HOME": "/"}, 0)
KEYS = [key for key, _, _ in settings.describe(BASE)]


def changed(part, words):
    """`part` with another value under these names."""
    now = getattr(part, words[0])
    if len(words) > 1:
        return replace(part, **{words[0]: changed(now, words[1:])})
    other = {bool: lambda: not now, int: lambda: now + 1, float: lambda: now + 1, str: lambda: now + "x"}.get(type(now))
    fresh = other() if other else Path("/elsewhere") if isinstance(now, Path) else ("x",) if now == () else {"x": "x"}
    return replace(part, **{words[0]: fresh})


@pytest.mark.parametrize("key", KEYS)
def test_a_change_takes_effect_or_waits(key):
    """As `--check-config` says."""
    fresh = changed(BASE, key.split("."))
    after = live.merged(BASE, fresh)
    assert (after == fresh, after == BASE) == ((True, False) if live.takes_effect(key) else (False, True))


def test_every_name_is_a_setting():
    """None was renamed and forgotten here."""
    sections = {section.name for section in fields(BASE) if is_dataclass(getattr(BASE, section.name))} | {"trust"}
    assert sections >= live.SECTIONS | live.OTHERS
    assert set(KEYS) >= live.KEYS
