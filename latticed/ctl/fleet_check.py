"""latticectl fleet check: whether a message system is fit for the fleet, found out by trying; for one of your own."""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_signing
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ctl.session import CtlSession
    from latticed.fleet.fleet_directory import FleetDirectory

EXAMPLES: Final = examples(
    "latticectl fleet check --fleet home                # servers as latticectl fleet init configures them",
    "latticectl fleet check --fleet home --controller-credentials c1.creds --system-credentials sys.creds \\",
    "    --node web-1 --node-credentials web-1.creds    # your own, with users of your own",
)
_LIFE_S: Final = 600
"""Of credentials that are made for a check."""
_COLUMNS: Final = (Column("EXPECTED"), Column("FOUND"))


def arguments(parser: Parser) -> None:
    parser.add_argument("--fleet", metavar="DIR", type=str, help="the fleet's directory (default: the one around here)")
    for who, default in (
        ("controller", "of the first one in the fleet's directory"),
        ("system", "those in the fleet's directory"),
        ("node", "some that are made for this"),
        ("revoking", "of the first one in the fleet's directory"),
    ):
        parser.add_argument(
            f"--{who}-credentials", metavar="FILE", type=str, default="", help=f"its credentials (default: {default})"
        )
    parser.add_argument("--node", metavar="NODE", default="", help="whose --node-credentials these are")


def run(session: CtlSession) -> int:
    """Try what it must do and must not let a node do, at names that no node has; exit code 3 for what is wrong."""
    import asyncio

    fleet = fleet_signing.directory(session)
    try:
        from latticed.fleet import engine, nats_check
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "nats":
            raise
        raise Problem("fleet_missing", "this needs the package nats-py", "pip install 'latticed[fleet]'") from error
    from latticed.fleet import deployment

    # It warns of each connection that a server closes, because nats-py starts TLS on a plain stream.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with _credentials(session, fleet) as (node, paths):
        names = {"controller": "check", "system": "check", "node": node, "invited": node}
        ends = {who: _endpoint(fleet, names.get(who) or _name(path), path) for who, path in paths.items()}
        try:
            found = asyncio.run(
                nats_check.check(
                    ends["controller"],
                    ends["node"],
                    ends.get("system"),
                    revoking=ends.get("revoking"),
                    invited=ends["invited"],
                    sizes=deployment.Sizes(nodes=fleet.facts.nodes),
                    replicas=1,
                )
            )
        except engine.EngineUnavailable as error:
            hint = f"are its servers {', '.join(fleet.facts.addresses)} reached from here?"
            raise Problem("unreachable", f"no connection to the message system: {error}", hint) from error
    serious = [one for one in found if one.serious]
    if session.screen.json_wanted:
        session.screen.json([{"expected": one.expected, "found": one.found, "serious": one.serious} for one in found])
        return ExitCode.UNHEALTHY if serious else ExitCode.OK
    if serious:
        session.screen.rows(_COLUMNS, [(one.expected, one.found) for one in serious])
    else:
        session.screen.line("the message system has what a fleet needs, and lets a node do nothing else")
    for one in found:
        if not one.serious:
            session.screen.note(f"it can do without {one.expected}; found {one.found}")
    return ExitCode.UNHEALTHY if serious else ExitCode.OK


@contextlib.contextmanager
def _credentials(session: CtlSession, fleet: FleetDirectory) -> Iterator[tuple[str, dict[str, Path]]]:
    """The node's name, and the credentials file of each; Problem usage, not_found."""
    from latticed.fleet import deployment, nkeys

    args = session.args
    if bool(args.node) != bool(args.node_credentials):
        raise Problem("usage", "expected --node NODE and --node-credentials FILE together, found one of them")
    with tempfile.TemporaryDirectory(prefix="latticectl-") as place:  # mode 0700
        node, of_node = args.node, Path(args.node_credentials)
        now_s = int(time.time())
        signers = fleet.signers()
        if not node:
            node = f"check-{secrets.token_hex(8)}"
            key = nkeys.Key.generate(nkeys.KeyKind.USER)
            token = deployment.node_token(
                signers.node_signer, signers.nodes, key.public, node, now_s=now_s, expires_s=now_s + _LIFE_S
            )
            made = nkeys.UserCredentials(token=token, key=key, name=node, expires_s=now_s + _LIFE_S)
            of_node = _file(Path(place) / "node.creds", made.text())
        invited = deployment.invitation_credentials(
            signers.enrol_signer, signers.nodes, node, now_s=now_s, expires_s=now_s + _LIFE_S
        )
        first = next(
            iter(sorted(fleet.path.glob("controllers/*/nats.creds"))), fleet.path / "controllers/c1/nats.creds"
        )
        given = {
            "controller": Path(args.controller_credentials or first),
            "system": Path(args.system_credentials or fleet.path / "secret/system.creds"),
            "node": of_node,
            "invited": _file(Path(place) / "invited.creds", invited.text()),
            "revoking": Path(args.revoking_credentials or first.with_name("revoking.creds")),
        }
        for who, path in given.items():
            optional = who in {"system", "revoking"} and not getattr(args, f"{who}_credentials")
            if not optional and not path.is_file():
                raise Problem("not_found", f"expected credentials at {path}, found none", f"--{who}-credentials FILE")
        # Without them it is said that nobody can see whether servers sync.
        yield node, {who: path for who, path in given.items() if path.is_file()}


def _name(path: Path) -> str:
    """Of the user whose credentials these are: its inboxes begin with it. Problem usage."""
    from latticed.fleet import nkeys
    from latticed.kit import files

    try:
        return nkeys.UserCredentials.parse(files.read_at_most(path, 64 << 10)).name
    except (OSError, ValueError) as error:
        raise Problem("usage", f"expected a credentials file at {path}, found: {str(error)[:200]}") from error


def _file(path: Path, data: bytes) -> Path:
    """A file for one's own eyes."""
    path.touch(mode=0o600)
    path.write_bytes(data)
    return path


def _endpoint(fleet: FleetDirectory, name: str, path: Path) -> Any:
    import ssl

    from latticed.fleet import nats_connection, subjects

    return nats_connection.NatsEndpoint(
        servers=fleet.facts.addresses,
        tls=ssl.create_default_context(cadata=fleet.authority()),
        credentials=path,
        name=name,
        inbox=subjects.inbox(name),
    )
