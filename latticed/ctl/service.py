"""latticectl service: the long-lived programs of plugins."""

from __future__ import annotations

from typing import Final

from latticed.ctl import delegated
from latticed.ctl.arguments import examples
from latticed.ctl.table import Column

EXAMPLES: Final = examples("latticectl service list", "latticectl service list acme.store --format json")
_LIST: Final = delegated.DelegatedList(
    path="services",
    member="services",
    summary="services and how they are",
    columns=(
        (Column(title="PLUGIN"), "plugin"),
        (Column(title="NAME"), "name"),
        (Column(title="PROGRAM"), "program"),
        (Column(title="STATE"), delegated.state),
        (Column(title="PID", right=True), "pid"),
        (Column(title="RESTARTS", right=True), "restarts"),
        (Column(title="STARTED"), delegated.time("started_at")),
        (Column(title="ERROR", shrinks=True), delegated.last_error),
    ),
)
arguments, run = _LIST.arguments, _LIST.run
