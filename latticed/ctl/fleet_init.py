"""latticectl fleet init: a new fleet's directory, with what its servers and controllers need; offline."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.ctl.arguments import Parser, count, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.session import CtlSession
    from latticed.fleet.new_fleet import NewFile, NewFleet, OwnServers

EXAMPLES: Final = examples(
    'latticectl fleet init home --operator "$(latticectl fleet key operator.key --show)" --server fleet.example.org',
    "latticectl fleet init home --operator KEY --server n1.example.org --server n2.example.org \\",
    "    --server n3.example.org --controller c1 --controller c2     # three servers, two controllers",
    "latticectl fleet init home --operator KEY --server nats.example.org --ca ca.pem \\",
    "    --control-account AC… --nodes-account AN…                    # over a NATS that you run already",
)
_GIB: Final = 1 << 30
_CA_BYTES: Final = 32 << 10


def arguments(parser: Parser) -> None:
    parser.add_argument("directory", metavar="DIR", type=str, help="the new directory; keep it with the operator's key")
    parser.add_argument("--name", metavar="FLEET", help="the fleet's name (default: that of DIR)")
    parser.add_argument(
        "--operator", metavar="KEY", action="append", required=True, help="an operator's public key (repeatable)"
    )
    parser.add_argument(
        "--server",
        metavar="HOST[:PORT]",
        action="append",
        required=True,
        help="where a server of the message system will be reached: one, or three (of your own NATS, up to eight)",
    )
    parser.add_argument(
        "--controller", metavar="NAME", action="append", default=[], help="a controller (repeatable; default c1)"
    )
    parser.add_argument("--nodes", metavar="N", type=count, default=1_000, help="for how many hosts (default 1000)")
    parser.add_argument(
        "--bundles-gib", metavar="N", type=count, default=4, help="room for bundles in the servers (default 4)"
    )
    parser.add_argument("--ca", metavar="FILE", default="", help="of your own NATS: its certificates' authority, PEM")
    for account, whose in (("control", "controllers"), ("nodes", "nodes")):
        parser.add_argument(
            f"--{account}-account",
            metavar="KEY",
            default="",
            help=f"of your own NATS: the public key (A…) of the account that {whose} are in",
        )
    parser.add_argument(
        "--server-files",
        metavar="DIR",
        default="/etc/latticed-nats",
        help="on the servers' hosts: where servers/NAME is copied to (default /etc/latticed-nats)",
    )
    parser.add_argument(
        "--server-data",
        metavar="DIR",
        default="/var/lib/latticed-nats",
        help="on the servers' hosts: where they keep their streams (default /var/lib/latticed-nats)",
    )


def run(session: CtlSession) -> int:
    """Make the directory, whole or not at all, and say what of it goes where."""
    from latticed.fleet import new_fleet

    args, screen = session.args, session.screen
    place = Path(args.directory)
    if os.path.lexists(place):
        raise Problem("exists", f"expected nothing at {place}, found something", "a fleet is never made twice")
    wanted = _wanted(session, place)
    made = new_fleet.files(wanted, now_s=int(time.time()))
    _write(place, made)
    own = wanted.own is not None
    servers = [] if own else [f"servers/{new_fleet.server_name(number)}" for number in range(len(wanted.servers))]
    controllers = [f"controllers/{one}" for one in wanted.controllers]
    if screen.json_wanted:
        told = {"path": str(place), "fleet": wanted.fleet, "servers": servers, "controllers": controllers}
        screen.json({**told, "files": [one.path for one in made]})
        return ExitCode.OK
    screen.line(f"{place}: made the fleet {wanted.fleet}")
    if own:
        screen.line("  accounts             to who runs your NATS: what the accounts CTRL and NODES there have to have")
    for address, below in zip(wanted.servers, servers, strict=False):
        screen.line(f"  {below:<20} to {address.host}:{args.server_files}/, for nats-server -c nats-server.conf")
        screen.line(f"  {'':<20} in the environment of nats-server.env")
    for below in controllers:
        screen.line(f"  {below:<20} to its host: {new_fleet.CONTROLLER_FILES}/, root's alone (mode 0700)")
    screen.line("  secret, signed       to nobody: they stay with the operator's key")
    screen.hint(f"latticectl fleet sign --fleet {place} --key FILE {place}/{controllers[0]}/request.json")
    return ExitCode.OK


def _wanted(session: CtlSession, place: Path) -> NewFleet:
    """What the options ask for; Problem usage, bad_request."""
    from latticed.fleet import deployment, new_fleet
    from latticed.trust import policy

    args = session.args
    try:
        operators = tuple(policy.public_key(one, "--operator") for one in args.operator)
    except Problem as problem:
        raise Problem("usage", problem.reason, "latticectl fleet key FILE --show prints it") from problem
    for option in ("server_files", "server_data"):
        if not os.path.isabs(getattr(args, option)):
            given = getattr(args, option)[:80]
            raise Problem("usage", f"--{option.replace('_', '-')}: expected an absolute path, found {given!r}")
    return new_fleet.NewFleet(
        fleet=args.name or place.name,
        servers=tuple(new_fleet.ServerAddress.parse(one) for one in args.server),
        operators=tuple(dict.fromkeys(operators)),
        controllers=tuple(args.controller) or ("c1",),
        sizes=deployment.Sizes(nodes=args.nodes, bundles_bytes=args.bundles_gib * _GIB),
        files_at=args.server_files.rstrip("/"),
        data_at=args.server_data.rstrip("/"),
        own=_own(session),
    )


def _own(session: CtlSession) -> OwnServers | None:
    """The servers that are there already; None for new ones. Problem usage, not_found, io_error."""
    from latticed.fleet import fleet_directory, new_fleet
    from latticed.kit import files

    args = session.args
    given = (args.ca, args.control_account, args.nodes_account)
    if not any(given):
        return None
    if not all(given):
        raise Problem("usage", "expected --ca, --control-account and --nodes-account together, found some of them")
    try:
        authority = files.read_at_most(Path(args.ca), _CA_BYTES)
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected certificates at {args.ca}, found no file", "--ca FILE") from error
    except (OSError, ValueError) as error:
        raise Problem("io_error", f"cannot read {args.ca}: {str(error)[:200]}") from error
    if fault := fleet_directory.authority_fault(authority.decode("ascii", "replace")):
        raise Problem("usage", f"--ca: expected certificates in PEM in {args.ca}, found {fault[:200]}")
    return new_fleet.OwnServers(authority=authority, control=args.control_account, nodes=args.nodes_account)


def _write(place: Path, made: tuple[NewFile, ...]) -> None:
    """All files beneath a new directory (mode 0700), which appears when it is whole; Problem io_error."""
    import shutil

    from latticed.kit import files

    fresh = place.with_name(f".{place.name}.new.{os.getpid()}")
    try:
        fresh.mkdir(mode=0o700)
        for one in made:
            path = fresh / one.path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace(path, one.data, mode=0o600 if one.secret else 0o644)
        (fresh / "signed").mkdir(mode=0o700)
        fresh.rename(place)
        files.sync_directory(place.parent)
    except OSError as error:
        raise Problem("io_error", f"cannot write {place}: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
