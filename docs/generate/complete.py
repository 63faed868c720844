"""Whether every code and event has a text, and no text is of one that does not exist."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from generate import codes, events, host_calls
from latticed.ctl import codes as texts

if TYPE_CHECKING:
    from collections.abc import Iterator


def faults() -> Iterator[str]:
    """What is missing or left over, one a line."""
    told, known = codes.texts(), codes.known()
    for name in sorted(known.keys() - told.keys()):
        yield f"{name}: no entry in {texts.FILE}; named in {', '.join(sorted(filter(None, known[name])))}"
    for name in sorted(told.keys() - known.keys()):
        yield f"{name}: an entry in {texts.FILE}, and nothing has this code"
    below = Counter(name for one in texts.symptoms() for name in one.codes)
    yield from (f"{name}: below {count} symptoms" for name, count in below.items() if count > 1)
    for module, names in codes.ELSEWHERE.items():
        source = (codes.ROOT / module).read_text(encoding="utf-8")
        yield from (
            f"{name}: not in {module}"
            for name in names.split()
            if f'"{name}"' not in source and f'_{name.partition("_")[2]}"' not in source
        )
    yield from host_calls.faults()
    said, warned = events.texts(), events.subjects()
    levels = events.logged()
    wanted = events.actions() | events.notices().keys()
    wanted |= {name for name, level in levels.items() if level in {"debug", "info"} and name not in warned}
    yield from (f"{name}: no line in {events.TEXTS}" for name in sorted(wanted - said.keys()))
    yield from (
        f"{name}: a line in {events.TEXTS}, and nothing is called so"
        for name in sorted(said.keys() - wanted - levels.keys())
    )
    yield from (f"{name}: no entry in {events.CATALOG}" for name in sorted(levels.keys() - warned.keys() - said.keys()))
