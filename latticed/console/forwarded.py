"""What the console may ask the daemon: one table of routes, and what their bodies may say. Pure.

    POST plugins/by-id/acme.demo/restart {}                             with --act
    PUT  plugins/by-id/acme.demo/grants {"grant": ["http:egress"]}      never: host risk takes the command line

Nothing else reaches the control socket, whatever a page or a request of a browser says.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.model import ids
from latticed.model.capability import RISKS, Risk
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LONGEST_PART: Final = 253
"""Characters of a part that is no id; names of DNS records are the longest."""
_NAMES: Final = frozenset({"id"})


class ForwardedRoute(NamedTuple):
    """`template` as in the control API, below /api/. `members`: what a body may have."""

    method: str
    template: str
    members: frozenset[str] = frozenset()

    @property
    def acting(self) -> bool:
        """Whether it changes something."""
        return self.method != "GET"


def _reading(*templates: str) -> tuple[ForwardedRoute, ...]:
    return tuple(ForwardedRoute("GET", one) for one in templates)


# Not among them, though reading: secrets and configurations (scope `host`), values of plugins, and a backup, which is
# all of the state.
READING: Final = _reading(
    "health",
    "status",
    "plugins",
    "plugins/brief",
    "plugins/rejected",
    "plugins/by-id/{id}",
    "plugins/by-id/{id}/usage",
    "plugins/by-id/{id}/history",
    "plugins/by-id/{id}/logs",
    "audit",
    "audit/verify",
    "events",
    "notifications",
    "tasks",
    "tasks/{task}",
    "plans",
    "plans/{sha}",
    "market",
    "market/plugins",
    "market/plugins/{id}",
    "market/outdated",
    "ddns",
    "monitors",
    "services",
    "routes",
)
FLEET: Final = _reading("fleet", "fleet/nodes", "fleet/nodes/{node}", "fleet/events")
"""These are asked of a fleet's controller, where the console was given one. No page acts on a fleet."""
ACTING: Final = (
    ForwardedRoute("POST", "plugins/lifecycle", frozenset({"id", "status", "accept", "identity"})),
    ForwardedRoute("POST", "plugins/by-id/{id}/upgrade", frozenset({"accept", "identity"})),
    ForwardedRoute("POST", "plugins/by-id/{id}/rollback", frozenset({"to"})),
    ForwardedRoute("POST", "plugins/by-id/{id}/restart"),
    ForwardedRoute("POST", "plugins/by-id/{id}/forget"),
    ForwardedRoute("POST", "plugins/by-id/{id}/invoke", frozenset({"action", "payload"})),
    ForwardedRoute("PUT", "plugins/by-id/{id}/grants", frozenset({"grant", "trim"})),
    ForwardedRoute("POST", "market/refresh", frozenset({"source"})),
    ForwardedRoute("POST", "market/install", frozenset({"id", "source", "version", "accept"})),
    ForwardedRoute("PUT", "market/holds/{id}"),
    ForwardedRoute("DELETE", "market/holds/{id}"),
    ForwardedRoute("POST", "notifications/{item}/retry"),
    ForwardedRoute("POST", "ddns/{id}/{name}/retry"),
    ForwardedRoute("POST", "tasks/{task}/cancel"),
)
_BY_SHAPE: Final = MappingProxyType(
    {
        method: tuple(
            (one, tuple(one.template.split("/"))) for one in (*READING, *FLEET, *ACTING) if one.method == method
        )
        for method in ("GET", "POST", "PUT", "DELETE")
    }
)
_CONSENTS: Final = ("accept", "grant")
"""Members that list what is consented to."""


def route(method: str, parts: Sequence[str], *, act: bool) -> ForwardedRoute:
    """The route of the table that this is; Problems not_forwarded for any other, console_reads where it takes --act."""
    for one, shape in _BY_SHAPE.get(method, ()):
        if len(shape) == len(parts) and all(map(_fits, shape, parts)):
            if one.acting and not act:
                raise Problem(
                    "console_reads", "this console only reads", "end it, and start it with: latticectl ui --act"
                )
            return one
    raise Problem("not_forwarded", f"the console does not forward {method} {'/'.join(parts)[:200]}", "use latticectl")


def _fits(wanted: str, part: str) -> bool:
    """Whether a part of a path is that word, or may be the value of that placeholder."""
    if not wanted.startswith("{"):
        return wanted == part
    # A name: no dots alone, no separator, nothing that is not plainly one word.
    if wanted[1:-1] in _NAMES:
        return ids.is_valid(part)
    return 0 < len(part) <= _LONGEST_PART and part.strip(".") != "" and all(_is_plain(char) for char in part)


def _is_plain(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char in "-_.*")


def body(one: ForwardedRoute, given: Mapping[str, Any]) -> None:
    """Refuse a body that the table does not provide for: Problem not_forwarded, or needs_command for host risk."""
    if unknown := sorted(set(given) - one.members):
        raise Problem("not_forwarded", f"the console does not forward {', '.join(unknown)}", "use latticectl")
    for member in _CONSENTS:
        for name in given.get(member) or ():
            if not may_consent(str(name)):
                hint = "type the command that the page shows, as somebody with the scope host"
                raise Problem("needs_command", f"the console gives no consent to {str(name)[:80]!r}", hint)


def may_consent(name: str) -> bool:
    """Whether a page may consent to this: a capability by name that is of less than host risk."""
    return name in RISKS and RISKS[name] < Risk.HOST
