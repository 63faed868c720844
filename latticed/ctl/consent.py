"""What an operator agrees to by name: capabilities, hosts, a downgrade. There is no blanket yes."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from latticed.model import capability

if TYPE_CHECKING:
    from argparse import Namespace

    from latticed import wire
    from latticed.ctl.arguments import Parser
    from latticed.ctl.render import Screen


def arguments(parser: Parser) -> None:
    """The flags that give consent."""
    parser.add_argument(
        "--accept", metavar="CAP", action="append", default=[], help="grant this capability (repeatable)"
    )
    parser.add_argument(
        "--accept-host",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="let it reach this host, * allowed (repeatable)",
    )
    parser.add_argument("--allow-downgrade", action="store_true", help="accept a version below the highest so far")
    parser.add_argument("--dry-run", action="store_true", help="ask what would happen; change nothing")


def given(args: Namespace) -> dict[str, Any]:
    """The fields of a request for what was agreed to; absent where nothing was. A dry run is no consent."""
    fields: dict[str, Any] = {}
    if args.accept:
        fields["accept"] = list(dict.fromkeys(args.accept))
    if args.accept_host:
        fields["accept_hosts"] = list(dict.fromkeys(args.accept_host))
    if args.allow_downgrade:
        fields["allow_downgrade"] = True
    return fields


def remind(screen: Screen, view: wire.PluginView, *, dry_run: bool = False) -> None:
    """Say on stderr which capabilities stay masked, and the command that grants them (in a dry run: the option)."""
    masked = [name for name in view.capabilities if name not in view.granted]
    if not masked:
        return
    host_risk = [name for name in masked if capability.RISKS.get(name) is capability.Risk.HOST]
    why = " (host risk)" if masked == host_risk else ""
    screen.note(f"not granted{why}: {', '.join(masked)}")
    if dry_run:
        screen.hint(shlex.join(word for name in masked for word in ("--accept", name)))
        return
    words = ["latticectl", "caps", "grant", view.id, *(f"cap={name}" for name in masked)]
    screen.hint(shlex.join(words))
