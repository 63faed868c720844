"""Flags by which an operator consents to capabilities, hosts or a downgrade, each by name; there is none for all."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from latticed.model import capability, consents
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from argparse import Namespace

    from latticed import wire
    from latticed.ctl.arguments import Parser
    from latticed.ctl.render import Screen


_KINDS: Final = tuple(kind for kind in (*consents.KINDS, *consents.AT_UPGRADE) if kind != "cap")
"""The kinds that --accept takes besides capabilities."""


def arguments(parser: Parser) -> None:
    """Add the flags that give consent."""
    granting(parser)
    parser.add_argument("--allow-downgrade", action="store_true", help="accept a version below the highest so far")
    parser.add_argument("--identity", metavar="HEX", help="only this one, as --dry-run shows it; else nothing is done")


def granting(parser: Parser, *, dry_run: bool = True) -> None:
    """Add the flags that consent to what a version asks for, and --dry-run unless it makes no sense."""
    parser.add_argument(
        "--accept",
        metavar="CAP|KIND=VALUE",
        action="append",
        default=[],
        help=f"accept this capability, or one of {', '.join(f'{kind}=…' for kind in _KINDS)} (repeatable)",
    )
    parser.add_argument(
        "--accept-host",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="let it reach this host, * allowed (repeatable)",
    )
    if dry_run:
        parser.add_argument("--dry-run", action="store_true", help="ask what would happen; change nothing")


def given(args: Namespace) -> dict[str, Any]:
    """The request's fields for the given consents, absent where there are none. --dry-run is not among them.

    Problem usage for a capability that there is not: what is so already is answered before the daemon looks at it.
    """
    fields: dict[str, Any] = {}
    for name in (one.removeprefix("cap=") for one in args.accept):
        if "=" not in name and name not in capability.RISKS:
            raise Problem("usage", f"unknown capability {name[:80]!r}", "latticectl caps lists them")
    if args.accept:
        fields["accept"] = list(dict.fromkeys(args.accept))
    if args.accept_host:
        fields["accept_hosts"] = list(dict.fromkeys(args.accept_host))
    if getattr(args, "allow_downgrade", False):
        fields["allow_downgrade"] = True
    if getattr(args, "identity", None) is not None:
        fields["identity"] = args.identity
    return fields


def lacking(view: wire.PluginView) -> list[str]:
    """What is asked for and was not granted, as --accept takes it."""
    return [*_masked(view), *(view.withheld or [])]


def _masked(view: wire.PluginView) -> list[str]:
    """The declared capabilities that were not granted."""
    return [name for name in view.capabilities if name not in view.granted]


def remind(screen: Screen, view: wire.PluginView, *, dry_run: bool = False) -> None:
    """Note on stderr what is declared but not granted, and the command that grants it (in a dry run: the options)."""
    masked, withheld = _masked(view), view.withheld or []
    if masked:
        host_risk = [name for name in masked if capability.RISKS.get(name) is capability.Risk.HOST]
        # Said only when it holds for all that are listed.
        why = " (host risk)" if masked == host_risk else ""
        screen.note(f"not granted{why}: {', '.join(masked)}")
    if withheld:
        screen.note(f"not accepted: {', '.join(withheld)}")
    if dry_run and (masked or withheld):
        screen.hint(shlex.join(word for name in (*masked, *withheld) for word in ("--accept", name)))
        return
    # What a plugin is (type, interpreter, …) is only accepted with another version, not by `caps grant`.
    later = [one for one in withheld if one.partition("=")[0] not in consents.AT_UPGRADE]
    if masked or later:
        words = ["latticectl", "caps", "grant", view.id, *(f"cap={name}" for name in masked), *later]
        screen.hint(shlex.join(words))
