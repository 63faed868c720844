"""Who is told when of a certificate that ends: pure, with what was told before and the time as arguments.

    told = {"shop": [1800000000, 21]}                      its end, and the fewest days of which was told
    news({"shop": 1800000000}, told, now_s=1799500000)     -> notice of 7 days; told: {"shop": [1800000000, 7]}

A certificate that is renewed has another end, and is told of anew when that is near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

DAYS: Final = (21, 7, 1)
"""Days before the end at which is told, once each."""
DAY_S: Final = 86_400

Told = dict[str, tuple[int, int]]
"""By site: the end of its certificate (s since 1970), and the fewest of DAYS that was told."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Sites whose certificates end at the same moment: mostly one certificate."""

    sites: tuple[str, ...]
    ends_at: int
    days: int

    @property
    def word(self) -> str:
        """The same for the same notice: a notification that is sent twice is one."""
        return f"nginx-{self.sites[0]}-{self.ends_at}-{self.days}"


def news(ends: Mapping[str, int], told: Told, *, now_s: int) -> tuple[tuple[Notice, ...], Told]:
    """Notices that are due of the certificates of sites, and what is told once they are sent.

    Of the fewest days alone: who was off meanwhile hears of the last one. Sites that are gone are forgotten.
    """
    due: dict[tuple[int, int], list[str]] = {}
    after: Told = {}
    for site, end in sorted(ends.items()):
        before = told.get(site)
        known = before[1] if before is not None and before[0] == end else None
        days = min((one for one in DAYS if end - now_s <= one * DAY_S), default=None)
        if days is not None and (known is None or days < known):
            due.setdefault((end, days), []).append(site)
            known = days
        if known is not None:
            after[site] = (end, known)
    return tuple(Notice(tuple(sites), end, days) for (end, days), sites in due.items()), after


def read(plain: Any) -> Told:
    """What was kept; entries of any other form are left out, and are told again."""
    if not isinstance(plain, dict):
        return {}
    return {
        name: (value[0], value[1])
        for name, value in plain.items()
        if isinstance(value, list) and [type(one) for one in value] == [int, int]
    }


def left(notice: Notice, now_s: int) -> str:
    """How long until the end, as the rest of "the certificate "."""
    left_s = notice.ends_at - now_s
    if left_s <= 0:
        return "has ended"
    days, hours = divmod(left_s // 3600, 24)
    return f"ends in {days} days" if days > 1 else f"ends in {days * 24 + hours} hours"
