"""An intent as text; the same intent gives the same bytes. Pure."""

from __future__ import annotations

from tests.house.system.allowlist.intent import Intent


def render(intent: Intent) -> str:
    """`cellar: ann bob` and a newline for each door, by name."""
    doors = sorted(intent.doors, key=lambda door: door.name)
    return "".join(f"{door.name}: {' '.join(sorted(set(door.people)))}\n" for door in doors)
