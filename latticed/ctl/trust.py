"""latticectl trust: who may sign plugins.

`show` asks the daemon, else reads the file; `lift` asks the daemon; the rest edits the file.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession
    from latticed.trust.policy import Publisher, TrustPolicy

EXAMPLES: Final = examples(
    "latticectl trust                                  # whom the daemon trusts now",
    "latticectl trust show --trust trust.json          # the same of a file",
    "latticectl trust add acme KEY --ids 'acme.*' --max-risk write",
    "latticectl trust remove acme --dry-run            # which plugins would stop",
    "latticectl trust remove acme",
    "latticectl trust revoke --plugin acme.demo@1.2.0 --key KEY",
    "latticectl trust lift --plugin acme.demo@1.2.0    # once it is out of the file",
    "latticectl trust horizon                          # what ends soon, and when",
)

_COLUMNS: Final = (
    Column(title="PUBLISHER"),
    Column(title="KEY"),
    Column(title="IDS", shrinks=True),
    Column(title="MAX RISK"),
)


def arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    show = actions.add_parser("show", help="publishers, switches, revocations; with --trust: of a file")
    add = actions.add_parser("add", help="trust a publisher's keys, besides those it has")
    add.add_argument("publisher", metavar="PUBLISHER", help="name of the publisher, as manifests have it")
    add.add_argument("keys", metavar="KEY", nargs="+", help="public key in base64, as latticectl key show prints it")
    add.add_argument(
        "--ids", metavar="PATTERN", action="append", help="only these ids, not those before: exact, or ending in *"
    )
    add.add_argument("--max-risk", choices=("read", "write", "host"), help="the most its plugins may ask for")
    remove = actions.add_parser("remove", help="trust a publisher, or one of its keys, no more")
    remove.add_argument("publisher", metavar="PUBLISHER", help="name of the publisher, as manifests have it")
    remove.add_argument("--key", metavar="KEY", help="only this key")
    revoke = actions.add_parser("revoke", help="refuse keys, artifacts or versions for good")
    revoke.add_argument("--key", metavar="KEY", action="append", default=[], help="public key in base64 (repeatable)")
    for action in (add, remove, revoke):
        action.add_argument("--dry-run", action="store_true", help="say which plugins would stop; change nothing")
    revoke.add_argument(
        "--digest",
        metavar="SHA256",
        action="append",
        default=[],
        help="SHA-256 of an artifact, 64 hex digits (repeatable)",
    )
    revoke.add_argument("--plugin", metavar="ID@VERSION", action="append", default=[], help="ID@* for all versions")
    lift = actions.add_parser("lift", help="have the daemon forget a revocation that is no longer in the file")
    one = lift.add_mutually_exclusive_group(required=True)
    one.add_argument("--key", metavar="KEY", help="public key in base64")
    one.add_argument("--digest", metavar="SHA256", help="SHA-256 of an artifact, 64 hex digits")
    one.add_argument("--plugin", metavar="ID@VERSION", help="ID@* as it was revoked")
    actions.add_parser("horizon", help="what stops being installable or startable, and when; exit 3 within 14 days")
    for action in (show, add, remove, revoke):
        action.add_argument("--trust", metavar="FILE", type=str, help="this trust.json instead of the settings'")


def run(session: CtlSession) -> int:
    """Carry out the action; edits of the file also wait until the daemon has applied them."""
    match session.args.action:
        case "add":
            return _edit(session, _added)
        case "remove":
            return _edit(session, _removed)
        case "revoke":
            return _edit(session, _revoked)
        case "lift":
            return _lift(session)
        case "horizon":
            from latticed.ctl import trust_horizon

            return trust_horizon.run(session)
        case _:
            return _show(session)


def _file(session: CtlSession) -> Path:
    """The trust policy that is meant: --trust, or that of the settings."""
    given = getattr(session.args, "trust", None)
    return Path(given) if given else session.settings().trust_file


def _edit(session: CtlSession, change: Any) -> int:
    """Apply `change(policy, args) -> (policy, words)` to the file, after showing which plugins it would stop."""
    from latticed.ctl import policy_file, policy_wait

    path = _file(session)
    # Another key stops no plugin; ids and risk take the place of those there are.
    narrows = session.args.action != "add" or session.args.ids or session.args.max_risk or session.args.dry_run
    if narrows:  # before the file is locked: the daemon's answer may take long
        foreseen = _foreseen(session, change, path)
        if session.args.dry_run:
            return foreseen
    with policy_file.editing(path) as old:
        # Computed again under the lock: the file may have changed since the preview.
        new, done = change(old, session.args)
        if new == old and path.exists():
            done = f"already {done}"
        else:
            policy_file.write(path, new)
    # After the lock is released: another latticectl need not wait for the daemon.
    if late := policy_wait.wait(session, path, new):
        session.screen.note(late)
    if session.screen.json_wanted:
        session.screen.json(_plain(new, path))
    else:
        session.screen.line(done)
    return ExitCode.OK


def _foreseen(session: CtlSession, change: Any, path: Path) -> int:
    """Note which plugins the change would stop; in a dry run also print what the result would be."""
    from latticed.ctl import policy_file, policy_preview
    from latticed.trust.policy import NOBODY

    screen, dry_run = session.screen, session.args.dry_run
    old = policy_file.read(path) if path.exists() else NOBODY
    new, done = change(old, session.args)
    # Nothing would change, so the daemon need not be asked.
    if new == old and path.exists():
        found: list[dict[str, Any]] | None = []
        done = f"already {done}"
    else:
        found = policy_preview.show(session, new, path)
        done = f"would be {done}"
    if dry_run and screen.json_wanted:
        screen.json({**_plain(new, path), "stops": found})
    elif dry_run:
        screen.line(done)
    if dry_run:
        screen.note("nothing was changed: this was a dry run")
    return ExitCode.OK


def _added(old: TrustPolicy, args: Any) -> tuple[TrustPolicy, str]:
    """The policy with this publisher's keys added, and what to print. Ids and risk stay unless they are given."""
    from latticed.model import ids
    from latticed.model.capability import Risk
    from latticed.trust import policy

    name: str = args.publisher
    if not ids.is_valid(name) or name == ids.RESERVED_PUBLISHER:
        raise Problem("usage", f"expected a publisher's name (3 to 128 of a-z 0-9 . -), found {name[:150]!r}")
    keys = tuple(_named(policy.public_key, key, "KEY") for key in args.keys)
    had: policy.Publisher | None = old.publishers.get(name)
    new = policy.Publisher(
        keys=tuple(dict.fromkeys((*(had.keys if had else ()), *keys))),
        ids=tuple(dict.fromkeys(args.ids)) if args.ids else had.ids if had else (),
        max_risk=Risk[args.max_risk.upper()] if args.max_risk else had.max_risk if had else None,
    )
    return policy.with_publisher(old, name, new), f"trusted: {name}"


def _removed(old: TrustPolicy, args: Any) -> tuple[TrustPolicy, str]:
    """The policy without this publisher, or without one of its keys, and what to print.

    Problems not_found, last_key.
    """
    from latticed.trust import policy

    had = old.publishers.get(args.publisher)
    if had is None:
        raise Problem("not_found", f"no publisher {args.publisher[:150]!r} is trusted", "latticectl trust lists them")
    if args.key is None:
        return policy.without_publisher(old, args.publisher), f"no longer trusted: {args.publisher}"
    # Not `public_key`: a weak key that an older version took must be removable.
    key = _named(policy.revoked_key, args.key, "--key")
    if key not in had.keys:
        raise Problem("not_found", f"{args.publisher} has no such key", "latticectl trust lists them")
    left = tuple(other for other in had.keys if other != key)
    # A publisher without keys is not valid; to remove the publisher is another command.
    if not left:
        raise Problem(
            "last_key", f"this is the only key of {args.publisher}", f"latticectl trust remove {args.publisher}"
        )
    return policy.with_publisher(
        old, args.publisher, dataclasses.replace(had, keys=left)
    ), f"key of {args.publisher} removed"


def _revoked(old: TrustPolicy, args: Any) -> tuple[TrustPolicy, str]:
    """The policy with more revocations, and what to print."""
    from latticed.trust import policy

    more = policy.Revoked(
        keys=frozenset(_named(policy.revoked_key, key, "--key") for key in args.key),
        digests=frozenset(_named(policy.revoked_digest, digest, "--digest") for digest in args.digest),
        plugins=frozenset(_named(policy.revoked_plugin, plugin, "--plugin") for plugin in args.plugin),
    )
    named = [*sorted(more.keys), *sorted(more.digests), *sorted(more.plugins)]
    if not named:
        raise Problem("usage", "expected something to revoke", "name it with --key, --digest or --plugin")
    return policy.with_revocations(old, more), f"revoked: {', '.join(named)}"


def _lift(session: CtlSession) -> int:
    """Have the daemon forget one revocation."""
    from latticed.trust import policy

    args = session.args
    # argparse has seen to it that exactly one is given.
    kind, given, read = next(
        (kind, given, read)
        for kind, given, read in (
            ("key", args.key, policy.revoked_key),
            ("digest", args.digest, policy.revoked_digest),
            ("plugin", args.plugin, policy.revoked_plugin),
        )
        if given is not None
    )
    value = _named(read, given, f"--{kind}")
    try:
        plain = session.client().post("trust", "lift", body={"kind": kind, "value": value})
    except Problem as problem:
        if problem.code != "still_revoked":
            raise
        # The daemon tells nobody paths.
        again = f"latticectl trust lift --{kind} {shlex.quote(value)}"
        raise Problem(
            problem.code, problem.reason, f"take it out of `revoked.{kind}s` in {_file(session)}, then: {again}"
        ) from problem
    if session.screen.json_wanted:
        session.screen.json(plain)
    else:
        session.screen.line(f"lifted: {kind}", value)
    return ExitCode.OK


def _named(read: Any, given: str, option: str) -> str:
    """`given`, parsed by `read` like a field of trust.json; an error becomes Problem("usage") about `option`."""
    try:
        return str(read(given, option))
    # What is wrong is an argument of the command, not a file.
    except Problem as problem:
        raise Problem("usage", problem.reason) from problem


def _plain(policy: TrustPolicy, path: Path) -> dict[str, Any]:
    """A policy read from a file, in the shape of `GET /api/trust`."""
    return {
        "path": str(path),
        "ok": True,
        "publishers": [_publisher(name, one) for name, one in sorted(policy.publishers.items())],
        "require_signature": policy.require_signature,
        "allow_unsigned_host_risk": policy.allow_unsigned_host_risk,
        "revoked": {
            "keys": sorted(policy.revoked.keys),
            "digests": sorted(policy.revoked.digests),
            "plugins": sorted(policy.revoked.plugins),
        },
    }


def _publisher(name: str, one: Publisher) -> dict[str, Any]:
    """One publisher in the shape of `GET /api/trust`."""
    risk = one.max_risk.word if one.max_risk is not None else None
    return {"publisher": name, "keys": list(one.keys), "ids": list(one.ids), "max_risk": risk}


def _show(session: CtlSession) -> int:
    """Print the policy in force, or that of a file."""
    plain = _asked(session)
    screen = session.screen
    if screen.json_wanted:
        screen.json(plain)
        return ExitCode.OK
    screen.fields(_switches(plain))
    rows = list(_rows(plain))
    if rows:
        screen.rows(_COLUMNS, rows)
    revoked = plain.get("revoked")
    for kind, entries in (revoked if isinstance(revoked, dict) else {}).items():
        for entry in replies.texts(entries):
            screen.line("revoked", str(kind), entry)
    return ExitCode.OK


def _asked(session: CtlSession) -> dict[str, Any]:
    """The policy that the daemon has in force; that of the file with --trust or when no daemon answers."""
    if getattr(session.args, "trust", None) is None:
        try:
            return replies.mapping(session.client().get("trust"), "trust policy")
        # Only when there is no daemon does the file count: a refusal is its answer.
        except Problem as problem:
            if problem.code != "unreachable":
                raise
            session.screen.note("the daemon does not answer; this is what the file says")
    from latticed.ctl import policy_file

    path = _file(session)
    return _plain(policy_file.read(path), path)


def _switches(plain: dict[str, Any]) -> list[tuple[str, Any]]:
    """The fields that are shown above the table: file, validity and the two switches."""
    pairs: list[tuple[str, Any]] = []
    if plain.get("path"):
        pairs.append(("file", str(plain["path"])))
    pairs.append(("valid", render.yes_no(plain.get("ok"))))
    if plain.get("error"):
        pairs.append(("error", str(plain["error"])))
    pairs.append(("signature required", "yes" if plain.get("require_signature") else "no"))
    pairs.append(("unsigned host risk", "allowed" if plain.get("allow_unsigned_host_risk") else "refused"))
    return pairs


def _rows(plain: dict[str, Any]) -> Any:
    """The table's rows, one per key: publisher, key, ids, highest risk. A publisher without keys has one row."""
    for one in replies.rows(plain.get("publishers") or [], "list of publishers"):
        ids = ", ".join(replies.texts(one.get("ids"))) or "any"
        for key in replies.texts(one.get("keys")) or [""]:
            yield str(one.get("publisher") or ""), key, ids, str(one.get("max_risk") or "any")
