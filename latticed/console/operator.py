"""What the console needs of latticectl: it asks the daemon and explains, with the rights of whoever started it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from latticed.console import forwarded
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_DENIED_S: Final = 300.0
"""For how long a page that asks for itself again asks nothing that was refused: each refusal is on record."""


class ExplainedPlugin(NamedTuple):
    """`steps`: name, text and tone (`good`, `warn`, `bad` or empty) in the order in which a plugin comes to run.

    `command` is empty when there is nothing to do.
    """

    steps: list[tuple[str, str, str]]
    why: str
    command: str


class HealthFinding(NamedTuple):
    """A line of `latticectl doctor`: `state` is ok, off, look or bad."""

    check: str
    state: str
    found: str
    helps: str


class Operator(Protocol):
    """Everything here blocks, and raises Problem; times are RFC 3339."""

    def ask(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        """The decoded answer of the control API; that of `health` also when it comes with 503."""

    def changes(self, wanted: Callable[[], bool]) -> Iterator[str]:
        """What happens: `back` once the daemon tells of its events, for each the target, or empty; `gone` when it goes.

        Ends with `denied` where the daemon refuses to tell, and without it where `wanted` is false before an attempt.
        """

    def explain(self, reader: Reader, plugin_id: str) -> ExplainedPlugin:
        """The chain that leads to what a plugin is, asked for through `reader`."""

    def doctor(self) -> list[HealthFinding]:
        """What `latticectl doctor` finds."""

    def review(self, plan: str) -> dict[str, Any]:
        """What the root helper shows of a plan before its approval; it is asked for nothing else.

        And `approve`: the command, empty where there is nothing to approve; `overrides`: what it lacks then.
        """

    def became(self, answer: Any, *, upgraded: bool) -> tuple[str, str]:
        """What an act came to by the plugin's record in its answer: a tone, and why it is not `good`.

        `upgraded`: a version was to be taken.
        """

    def when(self, moment: str) -> str:
        """A time as people say it: `3m ago`."""


class Reader:
    """Asks the daemon for what the table forwards, and nothing else; in the shape of latticectl's client."""

    def __init__(self, operator: Operator, *, act: bool) -> None:
        self._operator = operator
        self._act = act
        # Of a reading route: when the daemon refused it, and how. A scope holds for a whole route.
        self._denied: dict[str, tuple[float, Problem]] = {}

    def get(self, *parts: str, query: Mapping[str, Any] | None = None) -> Any:
        """A `GET` of the table."""
        return self._sent("GET", parts, query or {}, {})

    def health(self) -> Any:
        """`GET /api/health`, whatever it says."""
        return self._sent("GET", ("health",), {}, {})

    def send(self, method: str, parts: tuple[str, ...], body: Mapping[str, Any]) -> Any:
        """Any request of the table that changes something, with --act."""
        return self._sent(method, parts, {}, body)

    def ask_anew(self) -> None:
        """Forget what was refused: scopes may have been given since, and somebody has opened a page to see."""
        self._denied.clear()

    def _sent(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        found = forwarded.route(method, parts, act=self._act)
        forwarded.body(found, body)
        at_s, denied = self._denied.get(found.template, (0.0, None))
        if denied and not found.acting and time.monotonic() - at_s < _DENIED_S:
            raise denied.with_traceback(None)
        try:
            return self._operator.ask(method, parts, query, body)
        except Problem as problem:
            if problem.code == "access_denied":
                self._denied[found.template] = (time.monotonic(), problem)
            raise
