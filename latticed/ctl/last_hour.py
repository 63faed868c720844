"""A plugin's last hour as lines of `info`: a mark for every three minutes, and the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import replies
from latticed.ctl.exit_codes import ExitCode, of
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from latticed.client.control import ControlClient
    from latticed.ctl.render import Screen

MINUTES: Final = 60
PER_MARK: Final = 3
"""Minutes; the line then fits 80 columns."""
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII: Final = "_.:-=+*#"


def ask(client: ControlClient, plugin_id: str) -> dict[str, Any] | None:
    """What the daemon answers about a plugin's history; None from a daemon of a version that has none."""
    try:
        return replies.mapping(client.get("plugins", "by-id", plugin_id, "history"), "history")
    except Problem as problem:
        if of(problem) is ExitCode.NOT_FOUND:
            return None
        raise


def fields(plain: object, screen: Screen) -> Iterator[tuple[str, str]]:
    """The lines, as names and values; none before the daemon has looked at the plugin for the first time."""
    hour = plain.get("hour") if isinstance(plain, dict) else None
    if not isinstance(plain, dict) or not isinstance(hour, dict) or not plain.get("since"):
        return
    known = "" if len(_numbers(hour, "calls")) >= MINUTES else f", known since {screen.when(str(plain['since']))}"
    yield "last hour", f"a mark for {PER_MARK} minutes{known}"
    marks = _BLOCKS if _shows_blocks(screen.out) else _ASCII
    processor = [None if one is None else one * 100 / 60 for one in _numbers(hour, "cpu_s")]
    memory = [None if one is None else one / (1 << 20) for one in _numbers(hour, "memory_bytes")]
    for name, values, unit in (("  processor", processor, "%"), ("  memory", memory, "MiB")):
        if most := max((one for one in values if one is not None), default=0):
            yield name, f"{_drawn(values, marks)}  {values[-1] or 0:.1f} {unit}, at most {most:.1f} {unit}"
    calls, denied, restarts = (_numbers(hour, name) for name in ("calls", "denied", "restarts"))
    if total := _total(calls):
        yield "  host calls", f"{_drawn(calls, marks)}  {total:.0f}, {_total(denied):.0f} denied"
    if total := _total(restarts):
        yield "  restarts", f"{_drawn(restarts, marks)}  {total:.0f}"


def _drawn(values: Sequence[float | None], marks: str) -> str:
    """`values`, one a minute, as a line of marks: the most of each PER_MARK minutes, up to now on the right."""
    padded = [*[None] * (MINUTES - len(values)), *values[-MINUTES:]]
    parts = [padded[at : at + PER_MARK] for at in range(0, MINUTES, PER_MARK)]
    highest = [max((one for one in part if one is not None), default=None) for part in parts]
    top = max((one for one in highest if one), default=1.0)
    # A blank where nothing is known. What is not 0 is never drawn as 0.
    last = len(marks) - 1
    return "".join(
        " " if one is None else marks[0 if one <= 0 else max(1, round(min(one / top, 1.0) * last))] for one in highest
    )


def _shows_blocks(out: TextIO) -> bool:
    """Whether stdout is a terminal that has the block characters; pipes and files get ASCII."""
    try:
        _BLOCKS.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return out.isatty()


def _total(values: Sequence[float | None]) -> float:
    return sum(one for one in values if one is not None)


def _numbers(hour: dict[str, Any], name: str) -> list[float | None]:
    """A list of the daemon's; what is no number is None."""
    found = hour.get(name)
    rows = found[-MINUTES:] if isinstance(found, list) else []
    return [float(one) if isinstance(one, (int, float)) and 0 <= one < 1e18 else None for one in rows]
