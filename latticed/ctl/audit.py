"""latticectl audit: the hash-chained record of every decision and every host call: query it, verify it, export it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import decode, event_table, replies, times
from latticed.ctl.arguments import Parser, cursor, examples, newest
from latticed.ctl.exit_codes import ExitCode
from latticed.model import chain
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.ctl.journal_heads import JournalHeads
    from latticed.ctl.session import CtlSession
    from latticed.trust.audit_chain import ChainCheck

EXAMPLES: Final = examples(
    "latticectl audit query --target acme.demo --since 1h",
    "latticectl audit query --last 20 --decision deny",
    "latticectl audit query --calls --actor plugin:acme.demo",
    "latticectl audit verify",
    "latticectl audit verify --journal   # as root, or as a member of systemd-journal",
    "latticectl audit export > audit.ndjson",
    'latticectl audit verify audit.ndjson --public-key "$KEY"   # KEY: latticectl version --verbose',
)

_PAGE: Final = 1000
"""Events of one request: the most that `GET /api/audit` answers with."""
_SINCE_ALONE: Final = "--since goes with --journal"
_FILTERS: Final = ("actor", "action", "target", "decision")
"""Options of `query` that are filters of the API under the same name."""
_DECISIONS: Final = ("allow", "deny", "-")


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action_of_audit", metavar="ACTION", required=True)
    query = actions.add_parser("query", help="show events, oldest first")
    query.add_argument(
        "--after", metavar="SEQ", type=cursor, default=None, help="only decisions after this one; SEQ.CALL: and calls"
    )
    query.add_argument("--limit", metavar="N", type=newest(_PAGE), default=100, help="at most so many (default 100)")
    query.add_argument("--last", metavar="N", type=newest(_PAGE), help="the newest so many; not with --after")
    export = actions.add_parser("export", help="all events and signed heads as NDJSON, for keeping elsewhere")
    export.add_argument(
        "--after", metavar="SEQ", type=cursor, default=None, help="only decisions after this one; SEQ.CALL: and calls"
    )
    for name in _FILTERS[:-1]:
        query.add_argument(f"--{name}", metavar=name.upper(), help=f"only events of this {name}")
    query.add_argument("--decision", choices=_DECISIONS, help="only events of this decision")
    query.add_argument("--since", metavar="WHEN", help="10m, 2h, 3d, or a time: only later events")
    verify = actions.add_parser("verify", help="recompute the chains: the daemon's, or those of an exported file")
    verify.add_argument(
        "file", metavar="FILE", type=str, nargs="?", help="an export; nothing is asked of the daemon then"
    )
    verify.add_argument("--public-key", metavar="KEY", help="the host's public key, to check signed heads of FILE")
    verify.add_argument(
        "--heads", metavar="LOG", type=str, help="signed heads that latticed logged: shows a tail cut with its heads"
    )
    verify.add_argument(
        "--journal",
        metavar="UNIT",
        nargs="?",
        const="latticed.service",
        help="signed heads that this host's journal has of the daemon's unit (default latticed.service)",
    )
    verify.add_argument(
        "--since",
        metavar="WHEN",
        type=str,
        help="with --journal: only heads that the journal got since then, for a record that was put back by a restore",
    )
    verify.add_argument("--whole", action="store_true", help="also what the daemon found whole before")
    for one in (query, export, verify):
        one.add_argument("--calls", action="store_true", help="the host calls alone")


def run(session: CtlSession) -> int:
    """Carry out the action; `verify` exits with 6 when a chain is broken."""
    match session.args.action_of_audit:
        case "query":
            return _query(session)
        case "export":
            return _export(session)
        case _ if session.args.file is not None:
            return _verify_lines(session, _read(Path(session.args.file)), session.args.public_key)
        # The daemon does not check heads from elsewhere, so its events are exported and checked here.
        case _ if session.args.heads is not None or session.args.journal is not None:
            session.args.after = None
            status = replies.mapping(session.client().get("status"), "status")
            return _verify_lines(session, _lines(session), str(status.get("public_key")))
        case _:
            return _verify(session)


def _query(session: CtlSession) -> int:
    """Print one page of events, oldest first."""
    args = session.args
    if args.after is not None and args.last is not None:
        raise Problem("usage", "--after and --last exclude each other", "latticectl audit query --help shows how")
    query: dict[str, str | int | None] = {name: getattr(args, name) for name in _FILTERS}
    query["since"] = times.since(args.since, session.screen.now_s) if args.since else None
    of_last = args.last is not None
    query |= {"limit": args.last, "newest": "1"} if of_last else {"limit": min(args.limit, _PAGE)}
    query |= {"after": args.after or None, "calls": "1" if args.calls else None}
    page = replies.mapping(session.client().get("audit", query=query), "page of events")
    rows = replies.rows(page.get("events"), "list of events")
    # The API gives the newest first, and every table here is oldest first.
    if of_last:
        rows.reverse()
    if session.screen.json_wanted:
        session.screen.json({**page, "events": rows})
        return ExitCode.OK
    if not rows:
        session.screen.note("no such events")
        return ExitCode.OK
    event_table.show(session.screen, (decode.event(row) for row in rows))
    if page.get("next"):
        session.screen.note(f"there are more: --after {page['next']}")
    return ExitCode.OK


def _export(session: CtlSession) -> int:
    """Print NDJSON in the encoding that is hashed (sorted keys, compact, ASCII), each event with its `hash`."""
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
    for line in _lines(session):
        session.screen.out.write(encode(line) + "\n")
    return ExitCode.OK


def _lines(session: CtlSession) -> Iterator[dict[str, Any]]:
    """The lines of an export: decisions, then calls. With a bare number as `--after`, decisions only."""
    start = chain.cursor(session.args.after) if session.args.after else chain.BEGINNING
    if session.args.calls:
        yield from _of_chain(session, chain.CALLS, start.calls if isinstance(start, chain.Position) else start or 0)
    elif isinstance(start, chain.Position):
        yield from _of_chain(session, chain.DECISIONS, start.decisions)
        yield from _of_chain(session, chain.CALLS, start.calls)
    else:
        yield from _of_chain(session, chain.DECISIONS, start or 0)


def _of_chain(session: CtlSession, name: chain.Name, after: int) -> Iterator[dict[str, Any]]:
    """The lines of one chain after seq `after`, as trust.audit_chain reads them.

    A checkpoint comes first where retention removed what was before; each signed head follows its event.
    """
    client, first = session.client(), after
    of_calls = name == chain.CALLS
    named: dict[str, Any] = {"chain": name} if of_calls else {}
    query: dict[str, str | int | None] = {"limit": _PAGE, "heads": "1", "calls": "1" if of_calls else None}
    while True:
        page = replies.mapping(client.get("audit", query={**query, "after": after}), "page")
        heads = replies.rows(page.get("heads") or [], "list of heads")
        events = replies.rows(page.get("events"), "list of events")
        begins = page.get("calls_checkpoint" if of_calls else "checkpoint")
        if after == first and begins:
            yield {"checkpoint": begins, **named}
        # Seqs have no gaps: those in between are gone, and the file would not verify.
        elif after != first and events and events[0].get("seq") != after + 1:
            raise Problem("audit_removed", "retention removed events while they were exported", "export again")
        for event in events:
            yield event
            for head in heads:
                if head.get("seq") == event.get("seq"):
                    yield {"head": {key: value for key, value in head.items() if key != "chain"}, **named}
        # A cursor that does not advance would have this ask for ever.
        following = chain.cursor(str(page.get("next")))
        following = following.of(name) if isinstance(following, chain.Position) else following
        if following is None or following <= after:
            return
        after = following


def _verify(session: CtlSession) -> int:
    """Have the daemon check its chains, and show its progress."""
    args = session.args
    if args.public_key is not None:
        raise Problem("usage", "--public-key is for a FILE; the daemon checks with its own key")
    if args.since is not None:
        raise Problem("usage", _SINCE_ALONE)
    query = {"progress": "1", "calls": "1" if args.calls else None, "whole": "1" if args.whole else None}
    plain: dict[str, Any] = {}
    with closing(session.client().lines("audit", "verify", query=query)) as lines:
        for line in lines:
            plain = _decoded(line)
            if "verifying" in plain:
                _tell(session, replies.mapping(plain["verifying"], "progress"))
    # Progress and then the end: the daemon stopped, or its connection broke.
    if "ok" not in plain:
        raise Problem(
            "unreachable", "the daemon closed the connection before it answered", "see journalctl -t latticed"
        )
    if code := plain.get("code"):
        raise Problem(str(code), str(plain.get("reason")), str(plain.get("hint") or ""))
    return _report(session, plain)


def _decoded(line: bytes) -> dict[str, Any]:
    """One line of the daemon's answer; Problem bad_reply for anything but a JSON object."""
    try:
        return replies.mapping(json.loads(line), "report")
    except (ValueError, RecursionError) as error:
        raise replies.bad("report") from error


def _tell(session: CtlSession, found: dict[str, Any]) -> None:
    """Show progress on one line of a terminal, rewritten in place."""
    if session.screen.err.isatty():
        session.screen.err.write(f"\r{found.get('chain')}: event {found.get('seq')} of {found.get('of')}\x1b[K\r")
        session.screen.err.flush()


def _verify_lines(session: CtlSession, lines: Iterable[Any], given: str | None) -> int:
    """Check the lines of an export here, with the public key `given` (base64) if there is one."""
    from latticed.trust import audit_chain

    key = audit_chain.public_key(given) if given is not None else None
    heads = _logged_heads(Path(session.args.heads)) if session.args.heads is not None else []
    journalled = _journalled(session)
    put_back = _PutBack(lines)
    if journalled is not None:
        heads += journalled.heads
        lines = put_back
    if session.args.calls:
        # What is no object stays, so that the check reports it.
        lines = (line for line in lines if not isinstance(line, dict) or line.get("chain") == chain.CALLS)
        heads = [head for head in heads if head.chain == chain.CALLS]
    found = audit_chain.verify(lines, heads=heads, key=key)
    if journalled is not None:
        _tell_reach(session, journalled)
        if not found.ok and put_back.last:
            at, action = put_back.last
            replaced = f"{action} at {at}: heads from before are of the record that was replaced"
            session.screen.note(f"{replaced}; if that was you, --since {at} leaves them out")
    if key is None:
        session.screen.note("signed heads were not checked: give --public-key (latticectl version --verbose shows it)")
    if session.args.calls:
        return _report(session, _plain(session, found.calls or found, key, name="host calls"))
    plain = _plain(session, found, key)
    if found.calls is not None:
        plain["calls"] = calls = _plain(session, found.calls, key, name="host calls")
        # As the daemon's report: the fault of the only broken chain is at the top.
        if plain["ok"] and not calls["ok"]:
            plain |= {"ok": False, "chain": chain.CALLS}
            plain |= {"first_bad_seq": calls["first_bad_seq"], "reason": calls["reason"]}
    return _report(session, plain)


class _PutBack:
    """Lines of an export as they pass; `last`: time and action of the newest event that heads before do not fit."""

    def __init__(self, lines: Iterable[Any]) -> None:
        self._lines = lines
        self.last: tuple[str, str] | None = None

    def __iter__(self) -> Iterator[Any]:
        for line in self._lines:
            if isinstance(line, dict) and line.get("action") in chain.REPLACING and isinstance(line.get("ts"), str):
                self.last = (line["ts"], line["action"])
            yield line


def _journalled(session: CtlSession) -> JournalHeads | None:
    """The heads of the journal, where they are asked for."""
    unit, since = session.args.journal, session.args.since
    if unit is None:
        if since is not None:
            raise Problem("usage", _SINCE_ALONE)
        return None
    from latticed.ctl import journal_heads

    return journal_heads.read(unit, since=times.since(since, session.screen.now_s) if since else "")


def _tell_reach(session: CtlSession, found: JournalHeads) -> None:
    """Say how far the journal vouches for the chains: no further than its newest head of each."""
    from latticed.kit.clock import rfc3339

    since = times.absolute(rfc3339(found.since_us))
    for name, words in ((chain.DECISIONS, "decisions"), (chain.CALLS, "host calls")):
        seqs = [head.seq for head in found.heads if head.chain == name]
        if seqs:
            reach = f"the journal vouches for {words} up to {max(seqs)}, by {len(seqs)} heads since {since}"
            session.screen.note(f"{reach}; for none after that")
        else:
            session.screen.note(f"the journal has no head of the {words}, and does not vouch for them")


def _plain(session: CtlSession, found: ChainCheck, key: object, *, name: str = "events") -> dict[str, Any]:
    """What was found in a file, in the shape of the daemon's report on a chain.

    `key`: the public key that heads were checked with, None without one. With a key, a chain that has events and no
    head signed by it counts as broken from event 1.
    """
    reason, bad = found.problem, found.bad_seq
    if not reason and key is not None and found.events and not found.signed_seq:
        # A valid chain of hashes can be computed without the key: without a signed head nothing proves that it is this
        # host's.
        reason, bad = "no event is under a head signed by this key: the whole chain could be made up", 1
    if key is not None and not reason and found.signed_seq < found.last_seq:
        session.screen.note(f"{name} after {found.signed_seq} are not under a signed head yet")
    plain: dict[str, Any] = {"ok": not reason, "events": found.events, "heads": found.heads}
    if reason:
        plain |= {"first_bad_seq": bad, "reason": reason}
    plain["head"] = {"seq": found.last_seq, "hash": found.last_hash}
    return {**plain, "signed_seq": found.signed_seq, "removed_seq": found.removed_seq}


def _logged_heads(path: Path) -> list[chain.Head]:
    """The signed heads found in latticed's log: JSON lines, text, or the output of journalctl."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error
    heads = [head for head in map(chain.logged_head, text.splitlines()) if head is not None]
    if not heads:
        raise Problem("no_heads", f"expected lines with {chain.HEAD_EVENT} in {path}, found none")
    return heads


def _read(path: Path) -> Iterator[Any]:
    """The decoded lines of an export; a line that is not JSON is returned as text, which the check reports."""
    from latticed.kit import strict_json

    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    yield strict_json.loads(line, integers_only=True)
                except strict_json.InvalidJson:
                    yield "no JSON"
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected an export at {path}, found no file") from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror}") from error


def _report(session: CtlSession, plain: dict[str, Any]) -> int:
    """Print the report on one or both chains; exit code 6 unless all is well."""
    ok = bool(plain.get("ok"))
    if session.screen.json_wanted:
        session.screen.json(plain)
        return ExitCode.OK if ok else ExitCode.REFUSED
    calls = plain.get("calls")
    for name, report in (("chain", plain), ("chain of host calls", calls)):
        # With only the calls broken the top of the report repeats their fault: then just theirs is shown.
        if not isinstance(report, dict) or (report is plain and plain.get("chain") and isinstance(calls, dict)):
            continue
        _tell_report(session, "chain of host calls" if report.get("chain") == chain.CALLS else name, report)
    return ExitCode.OK if ok else ExitCode.REFUSED


def _tell_report(session: CtlSession, name: str, report: dict[str, Any]) -> None:
    """Print the report on one chain in a sentence or two."""
    if "reason" in report:
        session.screen.line(f"the {name} is broken at event {report.get('first_bad_seq')}: {report.get('reason')}")
        return
    head = replies.mapping(report.get("head") or {}, "head")
    last = f"last event {head.get('seq')}, {str(head.get('hash') or '')[:16]}"
    session.screen.line(f"the {name} holds: {report.get('events')} events, {report.get('heads')} signed heads, {last}")
    if removed := report.get("removed_seq"):
        session.screen.line(f"it begins after event {removed}: retention removed what came before")
