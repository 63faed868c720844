"""latticectl trust horizon: what stops being installable or startable, and when; one function for each kind of row."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import replies
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession

SOON_S: Final = 14 * 86_400
_COLUMNS: Final = (
    Column(title="WHAT"),
    Column(title="NAME"),
    Column(title="WHEN"),
    Column(title="EFFECT", shrinks=True),
)
_ENDS: Final = "nothing new is installed from it; what runs keeps running"


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizonRow:
    """`when`: RFC 3339, empty for what has no date. `now`: it has ended already, whatever the date."""

    what: str
    name: str
    when: str = ""
    effect: str
    now: bool = False

    def soon(self, now_s: float) -> bool:
        """Whether it has ended, or does within SOON_S."""
        return self.now or (bool(self.when) and datetime.fromisoformat(self.when).timestamp() < now_s + SOON_S)


def found(session: CtlSession) -> list[HorizonRow]:
    """All rows, those that end first above."""
    client = session.client()
    market = replies.mapping(client.get("market"), "market")
    sources = replies.rows(market.get("sources"), "list of sources")
    policy = replies.mapping(client.get("trust"), "trust policy")
    refused = replies.rows(client.get("plugins", "rejected"), "list of refused bundles")
    rows = [*_sources(sources), *_bundles(refused), *_index_keys(sources), *_publisher_keys(policy)]
    return sorted(rows, key=lambda row: (not row.now, not row.when, row.when))


def run(session: CtlSession) -> int:
    """Print all rows; UNHEALTHY when one ends within 14 days."""
    rows = found(session)
    if session.screen.json_wanted:
        session.screen.json(
            [{"what": row.what, "name": row.name, "when": row.when, "effect": row.effect} for row in rows]
        )
    else:
        shown = session.screen.when
        session.screen.rows(_COLUMNS, [(row.what, row.name, shown(row.when), row.effect) for row in rows])
    return ExitCode.UNHEALTHY if any(row.soon(time.time()) for row in rows) else ExitCode.OK


def _sources(sources: list[dict[str, Any]]) -> Iterator[HorizonRow]:
    """Each document of a source that ends; a source without one has a row without a date."""
    for row in sources:
        name = str(row.get("name") or "")
        fault = ": ".join(filter(None, (str(row.get("code") or ""), str(row.get("reason") or ""))))
        # One that is there for looking ends nothing; one that was never fetched has no date.
        dates = replies.mapping(row.get("expires") or {}, "dates of a source")
        # Set wrongly, or its file is refused: it has ended without a date.
        now = not dates and row.get("code") not in {"", None, "index_missing"}
        for what, when in (dates or {"index": ""}).items():
            effect = _ENDS if row.get("usable") else fault
            yield HorizonRow(what=what, name=name, when=str(when), effect=effect, now=now)


def _bundles(refused: list[dict[str, Any]]) -> Iterator[HorizonRow]:
    """Bundles that need another version of latticed."""
    for row in refused:
        if row.get("code") == "host_incompatible":
            effect = f"cannot start: {row.get('reason')}"
            yield HorizonRow(what="bundle", name=str(row.get("name") or ""), effect=effect, now=True)


def _index_keys(sources: list[dict[str, Any]]) -> Iterator[HorizonRow]:
    """Keys that are pinned for an index: they have no end of their own. One that signs no more can be taken out."""
    for row in sources:
        signed = replies.texts(row.get("signed_by"))
        for key in replies.texts(row.get("keys")):
            effect = "no end is set; it signed the last index" if key in signed else "no end is set; it did not sign"
            yield HorizonRow(what="index key", name=f"{row.get('name')} {key}", effect=effect)


def _publisher_keys(policy: dict[str, Any]) -> Iterator[HorizonRow]:
    """Keys of publishers: a trust policy sets no end to them, but revocation does."""
    from latticed.trust import keys

    revoked = replies.mapping(policy.get("revoked") or {}, "revocations")
    gone = set(replies.texts(revoked.get("keys")))
    for row in replies.rows(policy.get("publishers"), "list of publishers"):
        for key in replies.texts(row.get("keys")):
            effect = "revoked: nothing that it signed starts" if key in gone else "no end is set"
            yield HorizonRow(
                what="publisher key", name=f"{row.get('publisher')} {keys.fingerprint(key)}", effect=effect
            )
