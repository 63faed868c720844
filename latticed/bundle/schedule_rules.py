"""Rules of a manifest's `schedules` (contracts §3): at most 16, each with one way to say when, which comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.bundle.rules import Broken, check_strings, quote
from latticed.model import schedule

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest, Schedule


def check(raw: list[dict[str, Any]], found: Manifest) -> None:
    """Raise Broken unless every schedule keeps the rules; `raw` is what `found.schedules` was decoded from."""
    if len(raw) > schedule.MOST:
        raise Broken(f"expected at most {schedule.MOST} `schedules`, found {len(raw)}")
    if raw and found.type == "worker":
        raise Broken("expected no `schedules` in a worker, which is a template: nothing of it is executed")
    names: set[str] = set()
    for place, (plain, one) in enumerate(zip(raw, found.schedules, strict=True)):
        field = f"schedules[{place}]"
        for key, value in plain.items():
            # A payload is the author's own JSON, like `config`.
            own = key == "payload"
            check_strings(f"{field}.{key}", value, allowed="\n\t" if own else "", nulls=own)
        _check_names(field, one, names)
        _check_when(field, one)
        if (size := schedule.payload_bytes(one.payload)) > schedule.MAX_PAYLOAD_BYTES:
            raise Broken(f"expected `{field}.payload` to be at most {schedule.MAX_PAYLOAD_BYTES} bytes, found {size}")


def _check_names(field: str, one: Schedule, names: set[str]) -> None:
    """Broken for a name or action that is not well formed, and for a name that is in `names`, to which it is added."""
    if not schedule.NAME.fullmatch(one.name):
        raise Broken(f"expected `{field}.name` to be 1 to 64 of a-z 0-9 _ -, found {quote(one.name)}")
    if one.name in names:
        raise Broken(f"expected `{field}.name` to be another one in each, found {one.name} again")
    names.add(one.name)
    if not schedule.ACTION.fullmatch(one.action):
        raise Broken(f"expected `{field}.action` to be 1 to 128 of A-Z a-z 0-9 . _ -, found {quote(one.action)}")


def _check_when(field: str, one: Schedule) -> None:
    """Broken unless exactly one of `every_s`, `daily` and `cron` is set, to something that comes."""
    given = [kind for kind in schedule.KINDS if getattr(one, kind) is not None]
    if len(given) != 1:
        raise Broken(f"expected `{field}` to have one of every_s, daily, cron, found {', '.join(given) or 'none'}")
    if one.every_s is not None and not schedule.SHORTEST_S <= one.every_s <= schedule.LONGEST_S:
        expected = f"{schedule.SHORTEST_S} to {schedule.LONGEST_S} seconds"
        raise Broken(f"expected `{field}.every_s` to be {expected}, found {one.every_s}")
    if one.daily is not None and not schedule.DAILY.fullmatch(one.daily):
        raise Broken(f"expected `{field}.daily` such as 03:30, found {quote(one.daily)}")
    if one.cron is not None:
        try:
            schedule.check_cron(one.cron)
        except schedule.NoSchedule as error:
            raise Broken(f"`{field}.cron`: {error}, found {quote(one.cron)}") from error
