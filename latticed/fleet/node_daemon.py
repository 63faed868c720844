"""The daemon as the node may ask it: over the control socket, by a fixed table of routes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.client.control import ControlClient
from latticed.fleet import planning
from latticed.fleet.decisions import Decision
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROUTES: Final = frozenset(
    {
        ("GET", "plugins/by-id/*"),
        ("GET", "plugins/by-id/*/config"),
        ("GET", "audit"),
        ("GET", "events"),
        ("GET", "plans"),
        ("GET", "secrets"),
        ("POST", "plugins/lifecycle"),
        ("POST", "plugins/by-id/*/upgrade"),
        ("POST", "plugins/by-id/*/rollback"),
        ("POST", "plugins/by-id/*/invoke"),
        ("PUT", "plugins/by-id/*/config"),
        ("PUT", "plugins/by-id/*/grants"),
        ("PUT", "secrets/*/plugins/*"),
        ("POST", "market/import"),
    }
)
"""Everything that is ever asked of the daemon. No script, no value of a secret, no trust, no approval of a plan."""
_READ_S: Final = 600.0
"""For an answer: an upgrade may wait for a plugin's stop."""


class Daemon:
    """The daemon, as far as the table of routes goes."""

    def __init__(self, socket_path: str, *, owner: Callable[[], str] = lambda: "") -> None:
        self._client = ControlClient(socket_path, read_s=_READ_S, owner=owner)
        self._events = ControlClient(socket_path, owner=owner)
        self._cut: Callable[[], None] = _nothing

    def ask(
        self, method: str, *parts: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Any:
        """The answer, as JSON; Problem, also for what is not in the table."""
        if not allowed(method, parts):
            raise Problem("not_forwarded", f"expected a route of the table, found {method} {'/'.join(parts)[:200]}")
        match method:
            case "GET":
                return self._client.get(*parts, query=query)
            case "PUT":
                return self._client.put(*parts, body=body or {})
            case _:
                return self._client.post(*parts, body=body or {})

    def follow(self, after: int) -> Iterator[Decision | None]:
        """The decisions in the daemon's record after that number, and those that come; None now and then, while there
        are none. Until `cut`; Problem.
        """
        if not allowed("GET", ("events",)):  # pragma: no cover - it is in the table
            raise Problem("not_forwarded", "expected a route of the table, found GET events")
        with contextlib.closing(self._events.lines("events", query={"after": after}, opened=self._opened)) as lines:
            for line in lines:
                name, _, value = line.partition(b":")
                try:
                    yield msgspec.json.decode(value, type=Decision) if name == b"data" else None
                except (msgspec.ValidationError, msgspec.DecodeError) as error:
                    raise Problem("bad_reply", f"the daemon's record is not of this version: {error}") from error

    def cut(self) -> None:
        """End `follow`, from another thread."""
        self._cut()

    def _opened(self, cut: Callable[[], None]) -> None:
        self._cut = cut

    def has(self, plugin_id: str, secrets: list[dict[str, Any]]) -> tuple[planning.Has, dict[str, Any]]:
        """What there is of a plugin, and the daemon's own report of it (empty when there is nothing)."""
        try:
            report = self.ask("GET", "plugins", "by-id", plugin_id)
        except Problem as problem:
            if problem.code != "not_found":
                raise
            return planning.Has(id=plugin_id), {}
        config = None
        with contextlib.suppress(Problem):  # of what was never installed there is none
            config = self.ask("GET", "plugins", "by-id", plugin_id, "config")
        try:
            return planning.view(plugin_id, report, config, secrets), report
        except (KeyError, TypeError, AttributeError) as error:
            raise Problem("bad_reply", f"the daemon's answer is not of this version: {error!r}") from error


def _nothing() -> None:
    """There is nothing to end."""


def allowed(method: str, parts: tuple[str, ...]) -> bool:
    """Whether a request is in the table; a part that stands for an id may be anything but another path."""
    for known, path in ROUTES:
        steps = path.split("/")
        fits = known == method and len(steps) == len(parts) and all(parts)
        if fits and all(step in {"*", part} for step, part in zip(steps, parts, strict=True)):
            return True
    return False
