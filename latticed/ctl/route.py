"""latticectl route: the HTTP routes that plugins have put, and whether they are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import delegated
from latticed.ctl.arguments import examples
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl route list", "latticectl route list acme.page --format json")


def _target(_: CtlSession, row: dict[str, Any]) -> str:
    """The kind of target, and the origin, the action or the plugin's files that it leads to."""
    leads_to = next((delegated.text(row, name) for name in ("origin", "action", "files_of") if row.get(name)), "")
    return f"{delegated.text(row, 'target')} {leads_to}".strip()


_LIST: Final = delegated.DelegatedList(
    path="routes",
    member="routes",
    summary="routes and whether they are served",
    columns=(
        (Column(title="PLUGIN"), "plugin"),
        (Column(title="PATH"), "path"),
        (Column(title="TARGET"), _target),
        (Column(title="STATE"), delegated.state),
        (Column(title="URL", shrinks=True), "url"),
        (Column(title="REASON", shrinks=True), "reason"),
    ),
)
arguments, run = _LIST.arguments, _LIST.run
