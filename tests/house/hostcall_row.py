"""The shape of a row in the table of host calls (`hostcalls`), and the settings that all of them run with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Params = dict[str, Any]

TOML = """
[host_calls]
request_bytes = 8192
kv_keys = 2
[static]
plugin_files = 1
[notify]
plugin_items = 2
[monitor]
plugin_monitors = 1
[ddns]
plugin_records = 1
[http]
listen = "127.0.0.1:0"
[task]
plugin_waiting = 6
[service]
plugin_services = 1
[service.programs]
sh = "/bin/sh"
[mail]
sender = "latticed@example.org"
starttls = false
"""
"""Quotas that are soon used up; `full` of a row goes beyond its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One host call; `PORT` in parameters stands for the port of a target on loopback that an operator bound.

    An operator has bound the secret BOUND, and no other. `LAST-ID` is the id that the last call of `before` gave.

    `good` succeeds once the calls of `before` were made, and its result has the members `answers`. Each of `bad` is
    bad_params. `refused`: the code that even a good one comes to in this version. `full`: calls after which the last is
    quota_exceeded. `down`: what is taken away so that the service cannot answer (`hostcalls.Stage.down`). An empty
    `full` or `down` has its reason in `why`.
    """

    good: Params
    answers: str
    bad: tuple[Params, ...]
    before: tuple[tuple[str, Params], ...] = ()
    full: tuple[tuple[str, Params], ...] = ()
    down: str = ""
    why: str = ""
    refused: str = ""

    @property
    def comes_to(self) -> str:
        """The outcome of a call with good parameters."""
        return self.refused or "ok"


READS_ONLY = "it keeps nothing"
