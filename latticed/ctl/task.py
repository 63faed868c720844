"""latticectl task: scripts that plugins submit; each runs only after an operator approved it by its digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import render, replies
from latticed.ctl.arguments import Parser, examples, newest
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl task list --state submitted",
    "latticectl task show 5c0f…                          # its script, its digest, what it wrote",
    "latticectl task approve 5c0f… 2cf24dba…             # run once what has that digest",
    "latticectl task cancel 5c0f…",
    "latticectl task cancel --all                        # nothing runs, nothing waits",
)

_STATES: Final = ("submitted", "approved", "running", "done", "failed", "interrupted", "cancelled", "expired")
_TONES: Final = {"done": "good", "failed": "bad", "interrupted": "bad", "submitted": "warn"}
_TABLE: Final = (
    Column(title="ID"),
    Column(title="STATE"),
    Column(title="PLUGIN"),
    Column(title="NAME"),
    Column(title="WITH"),
    Column(title="CREATED"),
    Column(title="EXIT", right=True),
    Column(title="REASON", shrinks=True),
)
_INDENT: Final = "  "
"""In front of each line of a script or output, so that none can pass for a line of latticectl's own."""


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the newest tasks")
    listing.add_argument("--state", choices=_STATES, help="only those in this state")
    listing.add_argument("--plugin", metavar="ID", help="only those of this plugin")
    listing.add_argument("--last", metavar="N", type=newest(500), default=50, help="the newest so many (default 50)")
    show = actions.add_parser("show", help="one task: its script, its digest, what it wrote")
    show.add_argument("task", metavar="TASK", help="id of the task, or how it begins")
    approve = actions.add_parser("approve", help="have a task run, once")
    approve.add_argument("task", metavar="TASK", help="id of the task")
    approve.add_argument("sha256", metavar="SHA256", help="the digest of the script that you have read (task show)")
    cancel = actions.add_parser("cancel", help="have a task not run, or end")
    cancel.add_argument("task", metavar="TASK", nargs="?", help="id of the task")
    cancel.add_argument("--all", action="store_true", help="every task that has not ended")


def run(session: CtlSession) -> int:
    """List tasks, show one, approve or cancel it."""
    match session.args.action:
        case "list":
            return _list(session)
        case "show":
            return _show(session)
        case "approve":
            return _approve(session)
        case _:
            return _cancel(session)


def _list(session: CtlSession) -> int:
    """Print the newest tasks."""
    args = session.args
    # The API answers with 500 rows at most, and refuses a greater limit.
    query = {"state": args.state, "plugin": args.plugin, "limit": args.last}
    plain = replies.mapping(session.client().get("tasks", query=query), "tasks")
    rows = replies.rows(plain.get("tasks"), "list of tasks")
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        session.screen.rows(_TABLE, [_row(session, row) for row in rows])
    return ExitCode.OK


def _row(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    """The cells of one task."""
    state = str(row.get("state") or "")
    return (
        str(row.get("id") or ""),
        Cell(state, _TONES.get(state, "")),
        str(row.get("plugin") or ""),
        str(row.get("name") or ""),
        str(row.get("interpreter") or ""),
        session.screen.when(str(row.get("created_at") or "")),
        _exit(row),
        ": ".join(filter(None, (str(row.get("code") or ""), str(row.get("reason") or "")))),
    )


def _exit(row: dict[str, Any]) -> str:
    """The exit code or the signal; empty while there is none."""
    if row.get("signal") is not None:
        return f"signal {row['signal']}"
    return "" if row.get("exit_code") is None else str(row["exit_code"])


def _show(session: CtlSession) -> int:
    """Print one task with its script and output."""
    plain = replies.mapping(session.client().get("tasks", session.args.task), "task")
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    screen.fields(_fields(plain, screen))
    for name in ("script", "stdout", "stderr"):
        text = str(plain.get(name) or "")
        if text or name == "script":
            cut = " (the beginning is gone)" if _is_cut(plain, name) else ""
            screen.line(f"{name}{cut}:")
            for line in text.removesuffix("\n").split("\n"):
                # A tab would be shown escaped, as `\x09`.
                screen.line(_INDENT + line.replace("\t", "    "))
    return ExitCode.OK


def _is_cut(plain: dict[str, Any], name: str) -> bool:
    """Whether an output had more bytes than what is kept of it."""
    kept = len(str(plain.get(name) or "").encode())
    return bool(plain.get("truncated")) and int(plain.get(f"{name}_bytes") or 0) > kept


def _fields(plain: dict[str, Any], screen: render.Screen) -> Iterator[tuple[str, str | Cell]]:
    """The fields of one task."""
    state = str(plain.get("state") or "")
    yield "id", str(plain.get("id") or "")
    yield "plugin", str(plain.get("plugin") or "")
    yield "name", str(plain.get("name") or "")
    yield "state", Cell(state, _TONES.get(state, ""))
    if plain.get("code"):
        yield "reason", f"{plain['code']}: {plain.get('reason') or ''}"
    yield "exit", _exit(plain)
    yield "with", str(plain.get("interpreter") or "")
    yield "targets", " ".join(replies.texts(plain.get("targets")))
    yield "timeout", f"{plain.get('timeout_s')} s"
    yield "sha256", str(plain.get("sha256") or "")
    yield "approved by", str(plain.get("approved_by") or "")
    for label, key in (
        ("created", "created_at"),
        ("approved", "approved_at"),
        ("began", "started_at"),
        ("ended", "ended_at"),
    ):
        yield label, screen.when(str(plain.get(key) or ""))


def _approve(session: CtlSession) -> int:
    """Approve the script with this digest: the operator gives it, so that what was read is what runs."""
    args = session.args
    plain = session.client().post("tasks", args.task, "approve", body={"sha256": args.sha256})
    return _told(session, plain, args.task, "approved")


def _cancel(session: CtlSession) -> int:
    """Cancel one task, or with --all every one."""
    args = session.args
    if bool(args.task) == bool(args.all):
        raise Problem("usage", "expected a task, or --all", "latticectl task list shows their ids")
    if args.all:
        plain = replies.mapping(session.client().post("tasks", "cancel", body={}), "answer")
        return _told(session, plain, str(plain.get("cancelled")), "cancelled")
    plain = replies.mapping(session.client().post("tasks", args.task, "cancel", body={}), "answer")
    return _told(session, plain, args.task, str(plain.get("state") or ""))


def _told(session: CtlSession, plain: Any, *words: str) -> int:
    """Print `words` on one line; with --json the daemon's answer instead."""
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        session.screen.line(*words)
    return ExitCode.OK
