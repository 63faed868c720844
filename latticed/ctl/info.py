"""latticectl info: one plugin's record, verdict, grants, runtime and last denials."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, decode, event_table, last_hour, render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell
from latticed.model.runtime import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed import wire
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples("latticectl info acme.demo", "latticectl info acme.demo --format json --abs-time")

_Field = tuple[str, str | Cell | None]


def arguments(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the plugin's id, as latticectl list shows it")


def run(session: CtlSession) -> int:
    """Print everything that the daemon answers about one plugin."""
    client, screen = session.client(), session.screen
    plain = ask.about(client, session.args.id)
    plain["history"] = last_hour.ask(client, session.args.id)
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    view = decode.plugin(plain.get("plugin"))
    verdict = plain.get("verdict")
    grants = plain.get("grants")
    screen.fields(
        [
            *_what(view),
            *_judged(verdict if isinstance(verdict, dict) else {}),
            *_alive(view.runtime, screen),
            *_used(plain.get("resources")),
            *_allowed(grants if isinstance(grants, dict) else {}),
            *_done(plain.get("calls")),
            *last_hour.fields(plain.get("history"), screen),
            *_scheduled(plain.get("schedules"), screen),
            *_upgraded(view, screen),
            *_kept(plain.get("kept"), screen),
            *_candidate(view),
            *_times(view, screen),
        ]
    )
    denials = plain.get("denials")
    if denials:
        screen.line("")
        screen.line("last denials:")
        event_table.show(screen, [decode.event(row) for row in replies.rows(denials, "denials")])
    return ExitCode.OK


def _what(view: wire.PluginView) -> Iterator[_Field]:
    """The fields of the accepted version."""
    yield "id", view.id
    yield "name", view.name
    yield "type", view.type + (" (built in)" if view.builtin else "")
    yield "version", view.version
    yield "publisher", view.publisher
    yield "digest", view.artifact_sha256
    yield "status", render.word(view.status)
    yield "available", render.yes_no(view.available)


def _judged(verdict: dict[str, Any]) -> Iterator[_Field]:
    """The fields of the verdict."""
    if verdict.get("ok"):
        yield "verdict", Cell("verified", "good")
    elif verdict.get("code"):
        yield "verdict", Cell(f"refused: {verdict['code']}", "bad")
        yield "  reason", str(verdict.get("reason") or "")
        yield "  hint", str(verdict.get("hint") or "")


def _alive(runtime: wire.RuntimeView, screen: render.Screen) -> Iterator[_Field]:
    """The fields of the runtime state."""
    yield "runtime", render.word(shown(runtime.state, runtime.message))
    yield "  runner", runtime.runner
    yield "  health", render.word(runtime.health)
    yield "  message", runtime.message
    if runtime.sandbox:
        yield "  sandbox", runtime.sandbox
    if runtime.pid:
        yield "  pid", str(runtime.pid)
    if runtime.restart_count:
        yield "  restarts", str(runtime.restart_count)
    if runtime.last_error:
        yield "  last error", Cell(f"{runtime.last_error.code}: {runtime.last_error.message}", "bad")
    for label, moment in (
        ("  started", runtime.started_at),
        ("  stopped", runtime.stopped_at),
        ("  next try", runtime.next_retry_at),
    ):
        if moment:
            yield label, screen.when(moment)


def _used(resources: object) -> Iterator[_Field]:
    """The fields of what its processes use, once it had any."""
    if not isinstance(resources, dict):
        return
    mib = _number(resources.get("memory_bytes")) / (1 << 20)
    yield "  processor", f"{_number(resources.get('cpu_s')):.1f} s since the daemon started"
    yield "  memory", f"{mib:.1f} MiB"
    yield "  tasks", f"{_number(resources.get('tasks')):.0f}"
    waits = resources.get("pressure")
    if isinstance(waits, dict) and waits:
        told = ", ".join(f"{name} {_number(percent):g} %" for name, percent in waits.items())
        yield "  waiting for", f"{told} of the last 10 s"


def _number(plain: object) -> float:
    """A number of the daemon's; 0 for anything else."""
    return float(plain) if isinstance(plain, (int, float)) else 0.0


def _allowed(grants: dict[str, Any]) -> Iterator[_Field]:
    """The fields of what is granted and accepted."""
    yield "granted", ", ".join(replies.texts(grants.get("granted")))
    masked = replies.texts(grants.get("masked"))
    yield "not granted", Cell(", ".join(masked), "warn")
    hosts = replies.texts(grants.get("hosts"))
    if hosts:
        yield "hosts", ", ".join(hosts)
    if permitted := replies.texts(grants.get("permits") or []):
        yield "permitted", ", ".join(permitted)
    accepted = grants.get("accepted")
    if isinstance(accepted, dict):
        yield "accepted", ", ".join(_terms(accepted))
    if withheld := replies.withheld(grants):
        yield "not accepted", Cell(", ".join(withheld), "warn")


def _terms(accepted: dict[str, Any]) -> Iterator[str]:
    """The accepted terms as the `kind=value` words that accept them; empty ones are left out."""
    for kind in ("type", "protocol", "interpreter", "level"):
        if accepted.get(kind):
            yield f"{kind}={accepted[kind]}"
    if args := replies.texts(accepted.get("args") or []):
        yield f"args={shlex.join(args)}"
    for kind, field in (
        ("feature", "features"),
        ("prefix", "prefixes"),
        ("dependency", "dependencies"),
        ("schedule", "schedules"),
    ):
        yield from (f"{kind}={one}" for one in replies.texts(accepted.get(field) or []))
    limits = accepted.get("limits")
    yield from (f"limit={name}:{value}" for name, value in (limits if isinstance(limits, dict) else {}).items())


def _done(calls: object) -> Iterator[_Field]:
    """The field that counts host calls, once there were any."""
    if isinstance(calls, dict) and calls.get("made"):
        yield "host calls", f"{calls['made']} since the daemon started, {calls.get('denied') or 0} denied"


def _scheduled(schedules: object, screen: render.Screen) -> Iterator[_Field]:
    """A field for each schedule: when it runs, and how it went."""
    for one in replies.rows(schedules or [], "schedules"):
        outcome, told = one.get("outcome"), [str(one.get("when"))]
        if one.get("next_at"):
            told.append(f"next {screen.when(one['next_at'])}")
        elif one.get("state") != "waiting":
            told.append(str(one.get("state")))
        if outcome and one.get("last_at"):
            told.append(f"last {screen.when(one['last_at'])}: {outcome}")
        if outcome not in {None, "ok", "running"} and one.get("reason"):
            told.append(str(one["reason"]))
        yield (
            f"schedule {one.get('name')}",
            Cell(", ".join(told), "bad" if outcome not in {None, "ok", "running"} else ""),
        )


def _upgraded(view: wire.PluginView, screen: render.Screen) -> Iterator[_Field]:
    """The fields of the last upgrade since the daemon started."""
    found = view.upgrade
    if found is None:
        return
    versions = f"{found.before or '-'} to {found.version or '-'}"
    yield "upgrade", Cell(f"{versions}: {found.state}", _TONE_OF.get(found.state, ""))
    if found.until:
        yield "  watch ends", screen.when(found.until)
    if found.at:
        yield "  decided", screen.when(found.at)
    if found.code:
        yield "  reason", f"{found.code}: {found.reason}"


_TONE_OF: Final = {"gating": "warn", "rolled_back": "bad", "committed": "good"}
"""How the state of an upgrade is shown."""


def _kept(rows: object, screen: render.Screen) -> Iterator[_Field]:
    """The fields of the versions that a rollback can return to, newest first."""
    for row in replies.rows(rows or [], "kept versions"):
        version = str(row.get("version") or "(no version)")
        bad = row.get("bad")
        why = f", given up: {bad.get('code')}" if isinstance(bad, dict) else ""
        replaced = screen.when(str(row.get("kept_at")))
        yield "kept", f"{version}, replaced {replaced}{why}"


def _candidate(view: wire.PluginView) -> Iterator[_Field]:
    """The fields of the version that an upgrade would take; none if there is no such version."""
    if view.candidate is None:
        return
    found = view.candidate
    yield "candidate", Cell(found.version or "(no version)", "warn")
    yield "  digest", found.artifact_sha256
    yield "  adds", ", ".join(found.adds)
    yield "  drops", ", ".join(found.drops)
    if found.must_name:
        yield "  needs", Cell(shlex.join(word for one in found.must_name for word in ("--accept", one)), "warn")
    if found.needs_downgrade:
        yield "  order", "a downgrade: needs --allow-downgrade"
    if found.bad is not None:
        yield "  given up", Cell(f"{found.bad.code}: {found.bad.reason}: needs --retry", "bad")


def _times(view: wire.PluginView, screen: render.Screen) -> Iterator[_Field]:
    """The fields with the times of the record's transitions, as far as they are known."""
    for label, moment in (
        ("verified", view.verified_at),
        ("installed", view.installed_at),
        ("activated", view.activated_at),
        ("disabled", view.disabled_at),
        ("updated", view.updated_at),
    ):
        if moment:
            yield label, screen.when(moment)
