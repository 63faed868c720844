"""Test a plugin without a daemon.

    from latticed.sdk.testing import Harness

    def test_it_counts():
        host = Harness(Hello(), capabilities=["kv:read", "kv:write"])
        assert host.invoke("greet", "world")["result"]["count"] == 1
        assert host.gate.kv["count"] == b"1"

`Harness` calls a plugin object in this process. `LongLived` and `run_once` start any program, in whatever language, and
speak latticed-stdio-1 or stdio-json-v1 with it over real pipes, as the host would, but unconfined. All of them answer
host calls from a Gate in memory: a call whose capability is not declared is refused as a real Gate refuses it.
"""

from __future__ import annotations

import json

from latticed.sdk import wires
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
    """Runs `plugin` against `gate` (see Gate for `capabilities`, `granted` and `answers`); `config` is what an
    operator has set. What goes in and out passes through JSON, as it would on the wire.
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
        """`{ok, message, result, error}`, as an operator would see it."""
        reply = self.plugin.answer(action, json.loads(wires.encode(payload)))
        return dict(json.loads(wires.encode_or(reply, failed)))

    def health(self) -> Health:
        """What the plugin says of itself; unhealthy when it raises."""
        return self.plugin.check()

    def stop(self) -> None:
        """Have it tidy up, as before a shutdown."""
        self.plugin.stopping()
