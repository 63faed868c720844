"""latticectl status: the daemon at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.ctl import render, replies, times
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl status", "latticectl status --format json")


def arguments(parser: Parser) -> None:
    """No arguments of its own."""


def run(session: CtlSession) -> int:
    """Print versions, counts and the newest event."""
    plain = replies.mapping(session.client().get("status"), "status")
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    audit = replies.mapping(plain.get("audit") or {}, "audit head")
    head = str(audit.get("head") or "")
    started = screen.when(str(plain.get("started_at") or ""))
    uptime = plain.get("uptime_s")
    screen.fields(
        [
            ("latticed", str(plain.get("version") or "")),
            ("state", render.word(str(plain.get("state") or ""))),
            ("uptime", times.duration(uptime) if isinstance(uptime, int | float) else ""),
            ("started", started),
            ("plugins", replies.counts(plain.get("plugins"))),
            ("runtime", replies.counts(plain.get("runtime"))),
            *replies.not_running(plain),
            ("rejected", str(plain.get("rejected", ""))),
            ("audit", f"event {audit['seq']}, head {head[:16]}" if audit.get("seq") else ""),
        ]
    )
    return ExitCode.OK
