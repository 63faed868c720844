"""What the daemon keeps going for plugins, listed: shared by the verbs ddns, monitor, service and route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, replies
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from latticed.ctl.client import ControlClient
    from latticed.ctl.session import CtlSession
    from latticed.ctl.table import Column

    Row = Callable[[CtlSession, dict[str, Any]], tuple[str | Cell, ...]]

_TONES: Final = {
    **dict.fromkeys(("published", "up", "running", "served"), "good"),
    **dict.fromkeys(("denied", "down", "failed", "refused"), "bad"),
    **dict.fromkeys(("resting", "retrying", "no_address", "backoff"), "warn"),
}


def add_list(actions: Any, what: str) -> None:
    """The action `list [ID]`."""
    listing = actions.add_parser(
        "list", help=f"{what}, of one plugin or all", description=f"{what}, of one plugin or all"
    )
    listing.add_argument("id", metavar="ID", nargs="?", help="the plugin's id")


def listed(session: CtlSession, kind: str, member: str, columns: Sequence[Column], row: Row) -> int:
    """Print all rows of `GET /api/<kind>`, which are in `member` of each page."""
    plugin_id = None if session.args.id is None else ask.known_id(session.args.id)
    rows = list(_rows(session.client(), kind, member, plugin_id))
    if session.screen.json_wanted:
        session.screen.json(rows)
    else:
        session.screen.rows(columns, [row(session, one) for one in rows])
    return ExitCode.OK


def text(row: dict[str, Any], name: str) -> str:
    """A member as text, empty when it is not there."""
    found = row.get(name)
    return "" if found is None else str(found)


def state(row: dict[str, Any]) -> Cell:
    """How it stands; what its plugin may not have done now rests, however it stood."""
    found = "resting" if row.get("resting") else text(row, "state")
    return Cell(found, _TONES.get(found, ""))


def fault(row: dict[str, Any], name: str = "last_error") -> str:
    """`code: message` of what went wrong last, if anything did."""
    found = row.get(name)
    if not isinstance(found, dict):
        return ""
    return ": ".join(filter(None, (text(found, "code"), text(found, "message") or text(found, "reason"))))


def _rows(client: ControlClient, kind: str, member: str, plugin_id: str | None) -> Iterator[dict[str, Any]]:
    """All rows, page by page."""
    after: str | None = None
    while True:
        query = {"plugin": plugin_id, "after": after, "limit": 500}
        page = replies.mapping(client.get(kind, query=query), f"list of {kind}")
        yield from replies.rows(page.get(member), f"list of {kind}")
        following = page.get("next")
        if not isinstance(following, str) or following == after:
            return
        after = following
