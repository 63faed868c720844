"""latticectl market: signed indexes of plugins, and taking bundles from them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import market_progress, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell, Column
from latticed.model import capability
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl market sources                          # each source, and what is wrong with it",
    "latticectl market refresh                          # ask every source for its index",
    "latticectl market search proxy",
    "latticectl market show acme.demo                   # what it wants, its age, what differs from what runs",
    "latticectl market install acme.demo --accept http:egress --accept-host api.example.org:443",
    "latticectl market install acme.demo --channel alpha --accept-age 2.0.0-alpha.1",
    "latticectl market fetch acme.demo --to ./plugins   # for a deployment that is read-only",
    "latticectl market outdated",
    "latticectl market hold acme.demo                   # --off: no more",
)

_LONG_S: Final = 600.0
_SOURCES: Final = (
    Column(title="SOURCE"),
    Column(title="FORMAT"),
    Column(title="USABLE"),
    Column(title="PLUGINS", right=True),
    Column(title="GENERATED"),
    Column(title="EXPIRES"),
    Column(title="REASON", shrinks=True),
)
_OFFERS: Final = (
    Column(title="ID"),
    Column(title="PUBLISHER"),
    Column(title="STABLE"),
    Column(title="ALPHA"),
    Column(title="HERE"),
    Column(title="SOURCE"),
    Column(title="SUMMARY", shrinks=True),
)
_RELEASES: Final = (
    Column(title="VERSION"),
    Column(title="CHANNEL"),
    Column(title="KNOWN SINCE"),
    Column(title="SHA-256"),
    Column(title="UNSUPPORTED", shrinks=True),
)
_OUTDATED: Final = (
    Column(title="ID"),
    Column(title="HERE"),
    Column(title="OFFERED"),
    Column(title="SOURCE"),
    Column(title="NOTE", shrinks=True),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("sources", help="the sources of the settings, and their last indexes")
    refresh = actions.add_parser("refresh", help="fetch the indexes of all sources, or of one")
    refresh.add_argument("source", metavar="SOURCE", nargs="?", default="", help="only this source")
    search = actions.add_parser("search", help="plugins whose id, name or summary has a text")
    search.add_argument("text", metavar="TEXT", nargs="?", default="", help="part of an id, name or summary")
    search.add_argument("--source", metavar="NAME", default="", help="only this source")
    show = actions.add_parser("show", help="one plugin: releases, what it wants, what differs from what runs")
    install = actions.add_parser("install", help="verify a bundle and put it where the daemon finds it; starts nothing")
    fetch = actions.add_parser("fetch", help="verify a bundle and write it below a directory")
    fetch.add_argument("--to", metavar="DIR", required=True, help="where the directory of the bundle is made")
    for action in (show, install, fetch):
        action.add_argument("id", metavar="ID", help="id of a plugin, as market search shows it")
        action.add_argument("--source", metavar="NAME", default="", help="where several have it")
        which = action.add_mutually_exclusive_group()
        which.add_argument(
            "--version",
            metavar="VERSION",
            default="",
            dest="release",
            help="this version; else the newest that can be used here",
        )
        which.add_argument(
            "--channel",
            choices=("stable", "alpha"),
            default="",
            help="the newest release of this channel (default stable)",
        )
    for action in (install, fetch):
        action.add_argument(
            "--accept",
            metavar="CAP|host=HOST:PORT",
            action="append",
            default=[],
            help="consent to this capability or host (repeatable)",
        )
        action.add_argument(
            "--accept-host",
            metavar="HOST:PORT",
            action="append",
            default=[],
            help="let it reach this host (repeatable)",
        )
        action.add_argument("--accept-age", metavar="VERSION", default="", help="take this version before its age")
        action.add_argument("--accept-held", action="store_true", help="although the plugin is held")
    install.add_argument("--allow-downgrade", action="store_true", help="accept a version below the highest so far")
    actions.add_parser("outdated", help="plugins whose source has a newer release, or none any more")
    hold = actions.add_parser("hold", help="keep a plugin at its version")
    hold.add_argument("id", metavar="ID", help="id of a plugin, as latticectl list shows it")
    hold.add_argument("--off", action="store_true", help="hold it no more")


def run(session: CtlSession) -> int:
    """Carry out the action."""
    return {
        "sources": _sources,
        "refresh": _refresh,
        "search": _search,
        "show": _show,
        "install": _install,
        "fetch": _fetch,
        "outdated": _outdated,
        "hold": _hold,
    }[session.args.action](session)


def _sources(session: CtlSession) -> int:
    """Print the sources, without asking any of them."""
    return _print_sources(session, replies.mapping(session.client().get("market"), "market"))


def _refresh(session: CtlSession) -> int:
    """Have the daemon fetch indexes, and print the sources."""
    body = {"source": session.args.source} if session.args.source else {}
    plain = session.client(read_s=_LONG_S).post("market", "refresh", body=body)
    return _print_sources(session, replies.mapping(plain, "market"))


def _print_sources(session: CtlSession, plain: dict[str, Any]) -> int:
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    rows = replies.rows(plain.get("sources"), "list of sources")
    if not rows:
        screen.hint("the settings name no source: see market.sources in docs/operate/market.md")
    screen.rows(_SOURCES, [_source(session, row) for row in rows])
    for row in rows:
        for reason in replies.texts(row.get("refused")):
            screen.note(f"{row.get('name')}: left out:", reason)
    for one in replies.rows(plain.get("taking"), "list of what is taken"):
        screen.note(f"taking {one.get('id')} {one.get('version')}: {one.get('file')}, {one.get('bytes')} bytes so far")
    return ExitCode.OK


def _source(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    reason = str(row.get("trouble") or "") or ": ".join(
        filter(None, (str(row.get("code") or ""), str(row.get("reason") or "")))
    )
    return (
        str(row.get("name") or ""),
        str(row.get("format") or ""),
        Cell("yes", "good") if row.get("usable") else Cell("no", "bad"),
        str(row.get("plugins") or 0),
        session.screen.when(str(row.get("generated_at") or "")),
        session.screen.when(str(row.get("expires_at") or "")),
        reason,
    )


def _search(session: CtlSession) -> int:
    """Print all matching plugins, page by page."""
    args, client = session.args, session.client()
    rows: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        query = {"text": args.text or None, "source": args.source or None, "after": after or None, "limit": 500}
        plain = replies.mapping(client.get("market", "plugins", query=query), "plugins")
        rows += replies.rows(plain.get("plugins"), "list of plugins")
        after = plain.get("next")
    return _listed(session, rows, _OFFERS, _offer, none="no index has such a plugin")


def _listed(
    session: CtlSession,
    rows: list[dict[str, Any]],
    columns: Sequence[Column],
    cells: Callable[[dict[str, Any]], tuple[str | Cell, ...]],
    *,
    none: str,
) -> int:
    """Print plugins of indexes; without any `none`, and where the indexes are told of."""
    if session.screen.json_wanted:
        session.screen.json(rows)
    elif rows:
        session.screen.rows(columns, [cells(row) for row in rows])
    else:
        session.screen.note(none)
        session.screen.hint("latticectl market sources shows the indexes")
    return ExitCode.OK


def _offer(row: dict[str, Any]) -> tuple[str | Cell, ...]:
    channels = replies.mapping(row.get("channels") or {}, "channels")
    unsupported = str(row.get("unsupported") or "")
    return (
        str(row.get("id") or ""),
        str(row.get("publisher") or ""),
        str(channels.get("stable") or ""),
        str(channels.get("alpha") or ""),
        str(row.get("installed") or ""),
        str(row.get("source") or ""),
        Cell(f"unsupported: {unsupported}", "warn") if unsupported else str(row.get("summary") or ""),
    )


def _choice(session: CtlSession) -> dict[str, Any]:
    """The fields that say which release is meant, absent where nothing is said."""
    args = session.args
    given = {"source": args.source, "version": args.release, "channel": args.channel}
    return {name: value for name, value in given.items() if value}


def _show(session: CtlSession) -> int:
    """Print one plugin, and what its release asks for."""
    client = session.client(read_s=_LONG_S)
    plain = replies.mapping(client.get("market", "plugins", session.args.id, query=_choice(session)), "plugin")
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    manifest = plain.get("manifest")
    fields: list[tuple[str, str | Cell | None]] = [
        (name, str(plain.get(name) or "")) for name in ("id", "name", "publisher", "type", "summary", "source")
    ]
    fields.append(("here", str(plain.get("installed") or "-")))
    if plain.get("held"):
        fields.append(("held", Cell("yes", "warn")))
    releases = replies.rows(plain.get("releases"), "list of releases")
    if isinstance(manifest, dict):
        fields += _manifest(manifest)
        fields += _index_says(session, next((one for one in releases if one.get("version") == manifest["version"]), {}))
    else:
        fields.append(("problem", Cell(str(plain.get("unsupported") or plain.get("problem") or ""), "bad")))
    screen.fields(fields)
    screen.rows(_RELEASES, [_release(session, row) for row in releases])
    return ExitCode.OK


def _manifest(manifest: dict[str, Any]) -> Iterator[tuple[str, str | Cell | None]]:
    """The fields of a verified manifest; empty ones are left out."""
    for title, name in (
        ("version", "version"),
        ("identity", "identity"),
        ("about", "description"),
        ("homepage", "homepage"),
        ("license", "license"),
        ("needs host", "requires_host"),
    ):
        if value := str(manifest.get(name) or ""):
            yield title, value
    for title, name in (
        ("capabilities", "capabilities"),
        ("hosts", "hosts"),
        ("to accept", "must_accept"),
        ("adds", "adds"),
        ("drops", "drops"),
    ):
        if values := replies.texts(manifest.get(name)):
            yield title, Cell(", ".join(map(_with_risk, values)), "warn" if name in {"must_accept", "adds"} else "")
    risk, here = str(manifest.get("risk") or ""), str(manifest.get("risk_here") or "")
    if here and here != risk:
        yield "risk", Cell(f"{risk}, here {here}", "warn")
    elif risk:
        yield "risk", risk


def _with_risk(name: str) -> str:
    """A capability with its risk; hosts as they are."""
    risk = capability.RISKS.get(name)
    return name if risk is None else f"{name} ({risk.word})"


def _index_says(session: CtlSession, release: dict[str, Any]) -> Iterator[tuple[str, str | Cell | None]]:
    """What the index has about a release, for people: its changelog and size; and how long it has been known here."""
    if url := str(release.get("changelog_url") or ""):
        yield "changelog", url
    if isinstance(size := release.get("artifact_bytes"), int):
        yield "size", f"{size:,} bytes"
    if seen := session.screen.when(str(release.get("first_seen") or "")):
        yield "known here", seen


def _release(session: CtlSession, row: dict[str, Any]) -> tuple[str | Cell, ...]:
    return (
        str(row.get("version") or ""),
        str(row.get("channel") or ""),
        session.screen.when(str(row.get("first_seen") or "")),
        str(row.get("artifact_sha256") or "")[:12],
        Cell(str(row.get("unsupported") or ""), "warn"),
    )


def _install(session: CtlSession) -> int:
    """Have the daemon take a bundle, and print each step."""
    args = session.args
    body = {"id": args.id, **_choice(session), "accept_age": args.accept_age, "accept_held": args.accept_held}
    body |= {"accept": args.accept, "accept_hosts": args.accept_host, "allow_downgrade": args.allow_downgrade}
    with market_progress.shown(session, args.id):
        plain = session.client(read_s=_LONG_S).post("market", "install", body={k: v for k, v in body.items() if v})
    taken = replies.mapping(plain, "bundle")
    screen = session.screen
    if screen.json_wanted:
        screen.json(taken)
        return ExitCode.OK
    screen.fields(
        [
            (str(one.get("step") or ""), str(one.get("detail") or ""))
            for one in replies.rows(taken.get("steps"), "list of steps")
        ]
    )
    screen.line(str(taken.get("id") or ""), str(taken.get("version") or ""), "verified")
    screen.hint(f"latticectl install {taken.get('id')}, or latticectl upgrade {taken.get('id')} if it was here before")
    return ExitCode.OK


def _fetch(session: CtlSession) -> int:
    """Write a bundle that the daemon verified below --to; an existing one is not replaced."""
    from latticed.bundle import write
    from latticed.kit import tar

    args, to = session.args, Path(session.args.to)
    target = to / args.id
    if "/" in args.id or args.id in {"", ".", ".."}:
        raise Problem("usage", f"expected the id of a plugin, found {args.id!a}")
    if target.exists() or target.is_symlink():
        raise Problem(
            "exists", f"expected {target} not to exist, found it", "fetched bundles replace nothing: move it away"
        )
    accept = [*args.accept, *(f"host={one}" for one in args.accept_host)]
    query: dict[str, str | int | None] = {**_choice(session), "accept": " ".join(accept) or None}
    query |= {"accept_age": args.accept_age or None, "accept_held": "true" if args.accept_held else None}
    client = session.client(read_s=_LONG_S)
    # In memory: an artifact is at most what the daemon's settings let it take.
    data = b"".join(client.chunks("market", "plugins", args.id, "bundle", query=query))
    try:
        reader, found = tar.TarReader(io.BytesIO(data)), {}
        while (member := reader.next()) is not None:
            found[member.name] = b"".join(reader.chunks())
        manifest, artifact = found.pop("manifest.json"), found.pop("artifact")
    except (tar.BadTar, KeyError) as error:
        raise replies.bad("bundle") from error
    try:
        write.write_bundle(target, manifest, artifact)
    except OSError as error:
        raise Problem("io_error", f"cannot write {target}: {error.strerror or error}") from error
    if session.screen.json_wanted:
        session.screen.json({"id": args.id, "path": str(target)})
    else:
        session.screen.line(str(target))
        session.screen.hint(f"latticectl verify {target}")
    return ExitCode.OK


def _outdated(session: CtlSession) -> int:
    """Print plugins that could be newer."""
    rows = replies.rows(
        replies.mapping(session.client().get("market", "outdated"), "plugins").get("plugins"), "plugins"
    )
    return _listed(session, rows, _OUTDATED, _behind, none="no plugin could be newer")


def _behind(row: dict[str, Any]) -> tuple[str | Cell, ...]:
    notes = []
    if row.get("held"):
        notes.append("held")
    if row.get("gone"):
        notes.append("its source has this version no more")
    return (
        str(row.get("id") or ""),
        str(row.get("installed") or ""),
        str(row.get("offered") or ""),
        str(row.get("source") or ""),
        Cell(", ".join(notes), "warn"),
    )


def _hold(session: CtlSession) -> int:
    """Hold a plugin, or no more; already so is success."""
    client, plugin_id = session.client(), session.args.id
    if session.args.off:
        plain = client.delete("market", "holds", plugin_id)
    else:
        plain = client.put("market", "holds", plugin_id, body={})
    done = replies.mapping(plain, "hold")
    if session.screen.json_wanted:
        session.screen.json(done)
    else:
        held = "held" if done.get("held") else "not held"
        session.screen.line(plugin_id, held if done.get("changed") else f"already {held}")
    return ExitCode.OK
