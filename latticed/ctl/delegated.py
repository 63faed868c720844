"""Lists of delegated work, shared by the verbs ddns, monitor, service and route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, replies
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from latticed.client.control import ControlClient
    from latticed.ctl.arguments import Parser
    from latticed.ctl.session import CtlSession

    Shown = str | Callable[[CtlSession, dict[str, Any]], str | Cell]

_TONES: Final = {
    **dict.fromkeys(("published", "up", "running", "served"), "good"),
    **dict.fromkeys(("denied", "down", "failed", "refused"), "bad"),
    **dict.fromkeys(("resting", "retrying", "no_address", "backoff"), "warn"),
}
"""Colours of states, of all these lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegatedList:
    """The action `list [ID]`: the rows of `GET /api/<path>`, which are in `member` of each page.

    `columns`: each with the name of a row's member, or a function that returns the cell.
    """

    path: str
    member: str
    summary: str
    columns: tuple[tuple[Column, Shown], ...]

    def add(self, actions: Any) -> None:
        """Add the action `list [ID]` to the actions of a verb's parser."""
        words = f"{self.summary}, of one plugin or all"
        listing = actions.add_parser("list", help=words, description=words)
        listing.add_argument("id", metavar="ID", nargs="?", help="the plugin's id")

    def arguments(self, parser: Parser) -> None:
        """The arguments of a verb that has only this action."""
        self.add(parser.add_subparsers(dest="action", metavar="ACTION", required=True))

    def run(self, session: CtlSession) -> int:
        """Print all rows, of one plugin if an id was given; as JSON one array."""
        plugin_id = None if session.args.id is None else ask.known_id(session.args.id)
        rows = list(_rows(session.client(), self.path, self.member, plugin_id))
        if session.screen.json_wanted:
            session.screen.json(rows)
            return ExitCode.OK
        shown = [
            tuple(text(row, one) if isinstance(one, str) else one(session, row) for _, one in self.columns)
            for row in rows
        ]
        session.screen.rows([column for column, _ in self.columns], shown)
        return ExitCode.OK


def text(row: dict[str, Any], name: str) -> str:
    """A member as text, empty when it is not there."""
    found = row.get(name)
    return "" if found is None else str(found)


def time(name: str) -> Shown:
    """What `columns` needs to show the row's member `name`, a time in RFC 3339, as the screen shows times."""
    return lambda session, row: session.screen.when(text(row, name))


def state(_: CtlSession, row: dict[str, Any]) -> Cell:
    """The row's state, or `resting` while its plugin may not act."""
    found = "resting" if row.get("resting") else text(row, "state")
    return Cell(found, _TONES.get(found, ""))


def last_error(_: CtlSession, row: dict[str, Any]) -> str:
    """`code: message` of the last error, or empty."""
    return fault(row.get("last_error"))


def fault(found: Any) -> str:
    """`code: message` of an object that has them (or `reason`), else empty."""
    if not isinstance(found, dict):
        return ""
    return ": ".join(filter(None, (text(found, "code"), text(found, "message") or text(found, "reason"))))


def _rows(client: ControlClient, kind: str, member: str, plugin_id: str | None) -> Iterator[dict[str, Any]]:
    """All rows, page by page: `member` of each page of `GET /api/<kind>`, of one plugin or (None) of all."""
    after: str | None = None
    while True:
        query = {"plugin": plugin_id, "after": after, "limit": 500}
        page = replies.mapping(client.get(kind, query=query), f"list of {kind}")
        yield from replies.rows(page.get(member), f"list of {kind}")
        following = page.get("next")
        # A cursor that does not advance would have this ask for ever.
        if not isinstance(following, str) or following == after:
            return
        after = following
