"""The overview: what needs attention first, and one page of the plugins, searched and sorted. Pure."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.console import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

PER_PAGE: Final = 50
MOST_ATTENTION: Final = 20
"""Rows above the table; the table has the rest, sorted by urgency."""
_LONGEST_SEARCH: Final = 128
_CONSENT: Final = frozenset({"needs_consent", "needs_config"})
_TONES: Final = MappingProxyType(
    {
        **dict.fromkeys(("armed", "healthy", "active"), "good"),
        **dict.fromkeys(("degraded", "disabled", "stopped"), "warn"),
        **dict.fromkeys(("failed", "unhealthy"), "bad"),
    }
)


class PluginRow(NamedTuple):
    """One plugin. `urgency`: the lower, the sooner; `why`: what needs attention, empty when nothing does."""

    id: str
    name: str
    version: str
    publisher: str
    status: str
    state: str
    health: str
    urgency: int
    why: str
    tone: str


class TableView(NamedTuple):
    """What somebody asked to see, as in the address: `?q=dns&sort=name&page=2`."""

    search: str = ""
    sort: str = "urgency"
    page: int = 1

    def query(self, **changes: Any) -> str:
        """The query of this view with `changes`, for a link."""
        from urllib.parse import urlencode

        wanted = self._replace(**changes)
        given = {"q": wanted.search, "sort": wanted.sort, "page": wanted.page}
        default = TableView()
        kept = {name: one for name, one in given.items() if one != getattr(default, _FIELDS[name])}
        return "?" + urlencode(kept)


class TablePage(NamedTuple):
    """`found` of `total` rows match; `rows` are those of page `page` of `pages`."""

    rows: Sequence[Any]
    found: int
    total: int
    page: int
    pages: int


_FIELDS: Final = {"q": "search", "sort": "sort", "page": "page"}
SORTS: Final[Mapping[str, tuple[str, Callable[[PluginRow], Any]]]] = MappingProxyType(
    {
        "urgency": ("Urgency", lambda row: (row.urgency, row.id)),
        "id": ("Id", lambda row: row.id),
        "name": ("Name", lambda row: (row.name.casefold(), row.id)),
        "status": ("Status", lambda row: (row.status, row.id)),
        "state": ("State", lambda row: (row.state, row.health, row.id)),
    }
)


def view(query: Mapping[str, str]) -> TableView:
    """What an address asks for; what is no sort or page of ours is the first one."""
    given = query.get("page", "")
    page = int(given) if given.isascii() and given.isdigit() and len(given) < 7 else 1
    sort = query.get("sort", "")
    return TableView(query.get("q", "")[:_LONGEST_SEARCH], sort if sort in SORTS else "urgency", max(1, page))


def rows(plugins: Any) -> list[PluginRow]:
    """A row for each plugin but built-ins that nobody has installed."""
    return [_row(one) for one in plain.rows(plugins) if not (plain.flag(one, "builtin") and _is_new(one))]


def _is_new(plugin: dict[str, Any]) -> bool:
    return plain.text(plugin, "status") == "verified"


def _row(plugin: dict[str, Any]) -> PluginRow:
    runtime = plain.mapping(plugin, "runtime")
    urgency, why = _attention(plugin, runtime)
    state, health = plain.text(runtime, "state"), plain.text(runtime, "health")
    return PluginRow(
        id=plain.text(plugin, "id"),
        name=plain.text(plugin, "name"),
        version=plain.text(plugin, "version"),
        publisher=plain.text(plugin, "publisher"),
        status=plain.text(plugin, "status"),
        state=state,
        health=health,
        urgency=urgency,
        why=why,
        tone=_TONES.get(health if state == "armed" and health != "unknown" else state, ""),
    )


def _attention(plugin: dict[str, Any], runtime: dict[str, Any]) -> tuple[int, str]:
    """How urgent, and why: failures, then what an operator has to decide."""
    status, state = plain.text(plugin, "status"), plain.text(runtime, "state")
    error = plain.mapping(runtime, "last_error")
    if status == "active" and state == "failed":
        code = plain.text(error, "code")
        return (1, f"needs a decision: {code}") if code in _CONSENT else (0, f"failed: {code or 'not known why'}")
    if status == "active" and plain.text(runtime, "health") in {"unhealthy", "degraded"}:
        return 1, f"{plain.text(runtime, 'health')}: {plain.text(runtime, 'message') or 'it gives no reason'}"
    if status != "verified" and not plain.flag(plugin, "available"):
        return 2, "its bundle does not verify, or is gone"
    if candidate := plain.mapping(plugin, "candidate"):
        return 3, f"version {plain.text(candidate, 'version') or 'without a number'} waits to be taken"
    if status == "active" and (lacking := _masked(plugin)):
        return 4, f"not granted: {', '.join(lacking[:3])}"
    if status == "verified":
        return 5, "verified, and nothing was decided about it"
    return (6, "") if status == "active" else (7, "")


def _masked(plugin: dict[str, Any]) -> list[str]:
    granted = set(plain.texts(plugin, "granted"))
    return [one for one in plain.texts(plugin, "capabilities") if one not in granted]


def page(found: Iterable[PluginRow], wanted: TableView) -> TablePage:
    """The rows of one page; beyond the last one, the last."""
    every = list(found)
    word = wanted.search.casefold()
    kept = [row for row in every if word in f"{row.id}\0{row.name}\0{row.why}".casefold()] if word else every
    return paged(sorted(kept, key=SORTS[wanted.sort][1]), wanted.page, total=len(every))


def paged(kept: Sequence[Any], number: int, *, total: int) -> TablePage:
    """Page `number` of what was kept of `total` rows."""
    pages = max(1, -(-len(kept) // PER_PAGE))
    at = min(number, pages)
    return TablePage(kept[(at - 1) * PER_PAGE : at * PER_PAGE], len(kept), total, at, pages)


def attention(found: Iterable[PluginRow]) -> list[PluginRow]:
    """The rows that need attention, the most urgent first; of these at most MOST_ATTENTION."""
    urgent = [row for row in found if row.why and row.urgency < 5]
    return sorted(urgent, key=SORTS["urgency"][1])[:MOST_ATTENTION]


def counts(found: Iterable[PluginRow]) -> list[tuple[str, int, str]]:
    """How many there are by what they are: label, number, tone."""
    every = list(found)
    states = Counter(row.state for row in every if row.status == "active")
    statuses = Counter(row.status for row in every)
    return [
        ("running", states["armed"], "good"),
        ("failed", states["failed"], "bad" if states["failed"] else ""),
        ("disabled", statuses["disabled"], ""),
        ("installed", statuses["installed"], ""),
        ("not decided", statuses["verified"], "warn" if statuses["verified"] else ""),
        ("plugins", len(every), ""),
    ]
