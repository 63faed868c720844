"""latticectl health: the daemon's health; --check sets the exit code for scripts and container health checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl health", "latticectl health --check || echo 'not well'")

_MISSING: Final = (Column(title="NOT GIVEN"), Column(title="WHY"), Column(title="WHAT HELPS"))
_NOTES: Final = (Column(title="NOTE"), Column(title="DETAIL"))
_COLUMNS: Final = (Column(title="PROBLEM"), Column(title="DETAIL"))


def arguments(parser: Parser) -> None:
    parser.add_argument("--check", action="store_true", help="exit 3 unless the status is ok")


def run(session: CtlSession) -> int:
    """Print the daemon's health; exit code 3 with --check unless it is ok."""
    plain = replies.mapping(session.client().health(), "health")
    status = str(plain.get("status") or "unknown")
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
    else:
        # Without the scope `read` the answer has the status only, so any other member may be missing.
        sandbox = plain.get("sandbox")
        given = sandbox if isinstance(sandbox, dict) else {}
        level = ", ".join([str(given.get("level") or ""), *replies.texts(given.get("features") or [])])
        fields = [("status", render.word(status)), *replies.not_running(plain)]
        screen.fields([*fields, *([("sandbox", level)] if given else [])])
        if missing := replies.rows(given.get("missing") or [], "list of steps"):
            screen.rows(
                _MISSING, (tuple(str(row.get(key) or "") for key in ("token", "step", "fix")) for row in missing)
            )
        if notes := replies.rows(plain.get("notes") or [], "list of notes"):
            screen.rows(_NOTES, ((str(row.get("code") or ""), str(row.get("detail") or "")) for row in notes))
        if problems := replies.rows(plain.get("problems") or [], "list of problems"):
            screen.rows(_COLUMNS, ((str(row.get("code") or ""), str(row.get("detail") or "")) for row in problems))
    return ExitCode.UNHEALTHY if session.args.check and status != "ok" else ExitCode.OK
