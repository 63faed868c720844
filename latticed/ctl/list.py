"""latticectl list: all plugins, one a line."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import decode, render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column
from latticed.model.lifecycle import Status
from latticed.model.runtime import shown, why_not_running

if TYPE_CHECKING:
    from latticed import wire
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl list", "latticectl list --all", "latticectl list --status active --format json")

_COLUMNS: Final = (
    Column(title="ID"),
    Column(title="VERSION", shrinks=True),
    Column(title="TYPE"),
    Column(title="STATUS"),
    Column(title="AVAILABLE"),
    Column(title="RUNTIME"),
    Column(title="HEALTH"),
    Column(title="CANDIDATE", shrinks=True),
    Column(title="UPDATED"),
)


def arguments(parser: Parser) -> None:
    parser.add_argument("--status", choices=[status.value for status in Status], help="only plugins of this status")
    parser.add_argument("--all", action="store_true", help="also built-in plugins that are not installed")


def run(session: CtlSession) -> int:
    """Print all plugins, or those of one status."""
    found = known = replies.rows(session.client().get("plugins"), "list of plugins")
    if session.args.status:
        found = [row for row in found if row.get("status") == session.args.status]
    screen, hidden = session.screen, 0
    if not session.args.all:
        everything, found = found, [row for row in found if not _is_offered(row)]
        hidden = len(everything) - len(found)
    if screen.json_wanted:
        screen.json(found)
    elif found:
        screen.rows(_COLUMNS, (_row(view, screen) for view in decode.plugins(found)))
    else:
        screen.note("no plugins")
    if not screen.json_wanted:
        _count(known, screen)
        if hidden:
            screen.hint(f"latticectl list --all shows built-in plugins that are not installed, too ({hidden})")
    return ExitCode.OK


def _is_offered(row: dict[str, Any]) -> bool:
    """Whether it is a built-in plugin that nobody has installed."""
    return bool(row.get("builtin")) and row.get("status") == Status.VERIFIED


def _count(known: list[dict[str, Any]], screen: render.Screen) -> None:
    """Say how many active plugins do not run, and why."""
    active = [view.runtime for view in decode.plugins(known) if view.status == Status.ACTIVE]
    why = Counter(why_not_running(one.state, one.last_error.code if one.last_error else "") for one in active)
    # Those that run have no reason; a Counter, unlike a dict, does not mind a missing key.
    del why[""]
    if why:
        screen.note(f"not running, of {len(active)} active: {replies.counts(dict(sorted(why.items())))}")
        screen.hint("latticectl explain ID says why, and what to do")


def _row(view: wire.PluginView, screen: render.Screen) -> tuple[str | Cell | None, ...]:
    """The cells of one plugin."""
    return (
        view.id,
        view.version,
        view.type,
        render.word(view.status),
        render.yes_no(view.available),
        render.word(shown(view.runtime.state, view.runtime.message)),
        render.word(view.runtime.health),
        view.candidate.version or "(no version)" if view.candidate else None,
        screen.when(view.updated_at),
    )
