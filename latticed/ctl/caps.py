"""latticectl caps: list capabilities, show those of a plugin, grant and trim."""

from __future__ import annotations

import shlex
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import ask, decision, limits, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column
from latticed.model import capability, consents, hostcall
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.client.control import ControlClient
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl caps                                        # all capabilities and their risk",
    "latticectl caps list acme.demo                         # what one plugin declares and has",
    "latticectl caps grant acme.fetch cap=http:egress host=api.example.org:443",
    "latticectl caps grant acme.fetch origin=http://backend.lan:8080=10.0.0.5",
    "latticectl caps suggest acme.fetch --since 30d         # what it used, and what it never did",
    "latticectl caps grant acme.fetch limit=memory_mib:512  # what an upgrade asks for and did not get",
    "latticectl caps trim acme.fetch host=api.example.org:443",
    "latticectl caps trim acme.fetch limit=memory_mib:256   # a limit or level: what is left at most",
)

_TONES: Final = {"read": "", "write": "warn", "host": "bad"}
"""Colours of risks."""
_TABLE: Final = (
    Column(title="CAPABILITY"),
    Column(title="RISK"),
    Column(title="TYPES"),
    Column(title="HOST CALLS", shrinks=True),
    Column(title="LIMITS"),
)
"""Columns of the list of all capabilities."""
_OF_PLUGIN: Final = (Column(title="CAPABILITY"), Column(title="RISK"), Column(title="GRANTED"))


_KINDS: Final = ", ".join(f"{kind}=…" for kind in consents.KINDS)


_AT_START: Final = frozenset({"feature", "limit", "level", "sandbox"})
"""What counts from a plugin's next start on; of a worker, whose routes are its manifest's, a prefix does too."""

_USED: Final = (
    Column(title="HOST CALL"),
    Column(title="MADE", right=True),
    Column(title="REFUSED", right=True),
    Column(title="LAST"),
)
"""Columns of `suggest`."""


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="what one plugin declares and has; without ID: all there are")
    listing.add_argument(
        "id",
        metavar="ID",
        nargs="?",
        help="id of a plugin, as latticectl list shows it; without one, all capabilities there are",
    )
    suggest = actions.add_parser("suggest", help="what it used, and what could be taken away")
    suggest.add_argument("id", metavar="ID", help="id of a plugin, as latticectl list shows it")
    suggest.add_argument(
        "--since", metavar="DAYS", type=_days, default=14, help="look back so far, as 14d (the default)"
    )
    for name, summary in (("grant", "let a plugin use something"), ("trim", "take something away from a plugin")):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("id", metavar="ID", help="id of a plugin, as latticectl list shows it")
        action.add_argument(
            "what",
            metavar="KIND=VALUE",
            nargs="+",
            help=_KINDS,
        )
        if name == "grant":
            action.add_argument("--force", action="store_true", help="let an origin be a cloud's metadata address")


def run(session: CtlSession) -> int:
    """Carry out the action; without one, list all capabilities."""
    match session.args.action:
        case "grant" | "trim":
            return _change(session)
        case "suggest":
            return _suggest(session)
        case _ if getattr(session.args, "id", None):
            return _of_plugin(session)
        case _:
            return _all(session)


def _all(session: CtlSession) -> int:
    """Print every capability; the limits are those of the settings here, as no daemon is asked."""
    bounds = limits.of(session.settings())
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "risk": risk.word,
            "types": capability.holders(name),
            "host_calls": hostcall.calls_of(name),
            "limits": bounds[name],
        }
        for name, risk in sorted(capability.RISKS.items(), key=lambda item: (item[1], item[0]))
    ]
    if session.screen.json_wanted:
        session.screen.json(rows)
        return ExitCode.OK
    session.screen.rows(
        _TABLE,
        (
            (
                row["name"],
                _risk(row["risk"]),
                ", ".join(row["types"]),
                ", ".join(row["host_calls"]),
                row["limits"],
            )
            for row in rows
        ),
    )
    return ExitCode.OK


def _risk(risk: str) -> Cell:
    """A risk in its colour."""
    return Cell(risk, _TONES.get(risk, ""))


def _of_plugin(session: CtlSession) -> int:
    """Print the capabilities of one plugin: declared, granted and masked, with hosts and permits."""
    plain = _grants(session.client(), session.args.id)
    if session.screen.json_wanted:
        session.screen.json(plain)
        return ExitCode.OK
    _show(session, plain)
    return ExitCode.OK


def _show(session: CtlSession, plain: dict[str, Any]) -> None:
    """Print the capabilities of one plugin, its hosts and permits, and what was not accepted."""
    granted = replies.texts(plain.get("granted"))
    session.screen.rows(
        _OF_PLUGIN,
        (
            (name, _risk(_word(name)), Cell("yes", "good") if name in granted else Cell("no", "warn"))
            for name in replies.texts(plain.get("declared"))
        ),
    )
    for host in replies.texts(plain.get("hosts")):
        session.screen.line("host", host)
    for permit in replies.texts(plain.get("permits") or []):
        session.screen.line(*permit.partition("=")[::2])
    for one in replies.withheld(plain):
        session.screen.line("not accepted", one)


def _word(name: str) -> str:
    """The risk of a capability as a word; empty for one that this version does not know."""
    risk = capability.RISKS.get(name)
    return risk.word if risk is not None else ""


def _grants(client: ControlClient, plugin_id: str) -> dict[str, Any]:
    """What `GET …/grants` answers about one plugin; Problem bad_reply when it is no JSON object."""
    return replies.mapping(client.get("plugins", "by-id", ask.known_id(plugin_id), "grants"), "grants")


def _change(session: CtlSession) -> int:
    """Grant or trim what was named, and say whether that changed anything."""
    args = session.args
    wanted = _parsed(args.what)
    client = session.client()
    # Asked for first: the API answers alike whether or not something changed.
    before = _grants(client, args.id)
    granting = args.action == "grant"
    body: dict[str, Any] = {"grant": wanted if granting else [], "trim": [] if granting else wanted}
    if getattr(args, "force", False):
        body["force"] = True
    plain = replies.mapping(client.put("plugins", "by-id", args.id, "grants", body=body), "grants")
    changed = _kept(before) != _kept(plain)
    if session.screen.json_wanted:
        session.screen.json(plain)
        return ExitCode.FAILED if plain.get("unrecorded") else ExitCode.OK
    for done, words in _done(wanted, granting=granting).items():
        session.screen.line(args.id, done if changed else f"already {done}", ", ".join(words))
    if plain.get("unrecorded"):
        return decision.unrecorded(session.screen)
    # A trim restarts the plugin by itself where that is needed; a grant does not.
    kinds = {one.partition("=")[0] for one in wanted} if granting and changed else set()
    if not kinds & {*_AT_START, "prefix"}:
        return ExitCode.OK
    view = ask.plugin(client, args.id)[1]
    if view.status == "active" and (kinds & _AT_START or view.type == "worker"):
        session.screen.note("a plugin that is running has it from its next start")
        session.screen.hint(shlex.join(["latticectl", "restart", args.id]))
    return ExitCode.OK


def _done(wanted: list[str], *, granting: bool) -> dict[str, list[str]]:
    """What was done with which words. Of a limit or level a trim names what is left at most."""
    if granting:
        return {"granted": wanted}
    lowered = [one for one in wanted if one.partition("=")[0] in {"limit", "level"}]
    away = [one for one in wanted if one not in lowered]
    return {done: words for done, words in (("taken away", away), ("limited to", lowered)) if words}


def _suggest(session: CtlSession) -> int:
    """Print what a plugin has used, and the command that trims what was granted and never used."""
    screen, plugin_id = session.screen, ask.known_id(session.args.id)
    query = {"days": session.args.since}
    plain = replies.mapping(session.client().get("plugins", "by-id", plugin_id, "usage", query=query), "usage")
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    calls = replies.rows(plain.get("calls"), "list of calls")
    if calls:
        screen.rows(_USED, [_used(session, row) for row in calls])
    for row in replies.rows(plain.get("hosts"), "list of hosts"):
        screen.line("reached", str(row.get("host") or ""), screen.when(str(row.get("last_at") or "")))
    unused = [f"cap={name}" for name in replies.texts(plain.get("unused"))]
    unused += [f"host={host}" for host in replies.texts(plain.get("unused_hosts"))]
    # Nothing is suggested before the plugin was watched for as long as was asked about.
    if plain.get("enough") is False:
        watched = screen.when(str(plain.get("watched_since") or "")) or "never"
        screen.note(f"watched since {watched}: too short to tell what it does not need, of {session.args.since} days")
    elif unused:
        screen.note(f"granted and not used in {session.args.since} days: {', '.join(unused)}")
        screen.hint(shlex.join(["latticectl", "caps", "trim", plugin_id, *unused]))
    return ExitCode.OK


def _used(session: CtlSession, row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one host call: how often it was made and refused, and when last."""
    last = session.screen.when(str(row.get("last_at") or ""))
    return str(row.get("call") or ""), str(row.get("allowed") or 0), str(row.get("denied") or 0), last


def _days(text: str) -> int:
    """An argument's type: days, as `14d` or `14`."""
    number = text.removesuffix("d")
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 3_650:
        raise ArgumentTypeError(f"expected days, as 14d, found {text[:40]!r}")
    return int(number)


def _kept(plain: dict[str, Any]) -> list[Any]:
    """The part of an answer about grants that `caps grant` and `caps trim` can change, to compare before and after."""
    found: list[Any] = [set(replies.texts(plain.get(field) or [])) for field in ("granted", "hosts", "permits")]
    return [*found, plain.get("accepted")]


def _parsed(what: list[str]) -> list[str]:
    """The words as `kind=value`; a bare capability name becomes `cap=`."""
    words = [one.removeprefix("cap=") for one in what]
    try:
        named = consents.parse(words, upgrading=False)
    except consents.BadConsent as bad:
        raise Problem("usage", str(bad)) from bad
    for name in named.caps:
        if name not in capability.RISKS:
            raise Problem("usage", f"unknown capability {name[:80]!r}", "latticectl caps lists them")
    return list(dict.fromkeys(words))
