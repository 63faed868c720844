"""Test a plugin without a daemon.

    from latticed.sdk.testing import Harness

    def test_it_counts():
        host = Harness(Hello(), capabilities=["kv:read", "kv:write"])
        assert host.invoke("greet", "world")["result"]["count"] == 1
        assert host.gate.kv["count"] == b"1"

`Harness` calls a plugin object in this process. `LongLived` and `run_once` start any program, in whatever language, and
use latticed-stdio-1 or stdio-json-v1 over real pipes, as the host does, but without a sandbox. All of them answer host
calls by an in-memory Gate: a call whose capability is not declared is refused as by a real Gate.
"""

from __future__ import annotations

import json

from latticed.sdk import lines
from latticed.sdk.base import failed
from latticed.sdk.gate import CAPABILITY_OF, Called, Gate
from latticed.sdk.programs import LongLived, ProgramError, run_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from latticed.sdk.base import Health
    from latticed.sdk.plugin import Plugin

__all__ = ["CAPABILITY_OF", "Called", "Gate", "Harness", "LongLived", "ProgramError", "run_once"]


class Harness:
    """Runs `plugin` in this process against an in-memory Gate (see Gate for `capabilities`, `granted` and `answers`).

    `config` is what an operator has set. `started` is called at once. Payloads and results make a round trip through
    JSON, as over a pipe. `gate` has the calls that were made.
    """

    def __init__(
        self,
        plugin: Plugin,
        *,
        capabilities: Iterable[str] = (),
        granted: Iterable[str] | None = None,
        answers: Mapping[str, Any] | None = None,
        id: str = "test.plugin",  # noqa: A002 - its name in the protocol
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.plugin = plugin
        self.gate = Gate(capabilities, granted=granted, answers=answers)
        plugin.id = id
        plugin.capabilities = self.gate.capabilities
        plugin.config = dict(config or {})
        plugin.connect(self.gate.call)
        plugin.started()

    def invoke(self, action: str, payload: Any = None) -> dict[str, Any]:
        """`{ok, message, result, error}`, as an operator would see it; an exception of the action is its error."""
        reply = self.plugin.answer(action, json.loads(lines.encode(payload)))
        return dict(json.loads(lines.encode_or(reply, failed)))

    def health(self) -> Health:
        """The plugin's health; unhealthy when `health` raises."""
        return self.plugin.check()

    def stop(self) -> None:
        """Call the plugin's `stopping`, as before a shutdown."""
        self.plugin.stopping()
