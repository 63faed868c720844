"""What host services keep for a plugin between its calls, as a value that can be put back.

A version that is given up may have changed routes, services, tunnels, monitors and DNS records; the one before, which
goes on without a start, would not put its own again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from latticed.host.call import HostError
from latticed.host.ddns import spec as ddns_specs
from latticed.host.monitor import spec as monitor_specs
from latticed.host.program import spec as program_specs
from latticed.host.route import spec as route_specs
from latticed.host.tunnel import spec as tunnel_specs
from latticed.kit import logs
from latticed.kit.value import Value, field
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from latticed.host.services import HostServices

log = logs.get_logger()


class Declared(Value, frozen=True, kw_only=True):
    """Specs as JSON, by path, name, or name and type. `tasks`: seq of the last task that any plugin had submitted."""

    tasks: int = 0
    routes: dict[str, str] = field(default_factory=dict)
    services: dict[str, str] = field(default_factory=dict)
    tunnels: dict[str, str] = field(default_factory=dict)
    monitors: dict[str, str] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)


class _Kind(Value, frozen=True, kw_only=True):
    """One kind of what is kept: its field of `Declared`, and how it is read, put and deleted, by its key there."""

    name: str
    present: Callable[[], Mapping[str, str]]
    put: Callable[[str, str], Awaitable[Any]]
    delete: Callable[[str], Awaitable[Any]]


def of(services: HostServices, plugin_id: str) -> Declared:
    """What is kept for a plugin now."""
    kept = {kind.name: dict(kind.present()) for kind in _kinds(services, plugin_id)}
    return Declared(tasks=services.tasks.last_seq(), **kept)


async def put_back(services: HostServices, plugin_id: str, wanted: Declared, *, by: str) -> None:
    """Have kept what was kept then, and nothing else; tasks submitted since are cancelled, `by` whom for the record.

    What is the same goes on untouched. What cannot be put any more (a grant was taken back meanwhile) is left out, and
    logged. Problem ledger_unavailable: to be called again; nothing is lost by that.
    """
    # What was asked for is carried out whole, though who asked is gone: it may be waiting for the disk still.
    for keeper in (services.programs, services.tunnels, services.monitors, services.ddns):
        await keeper.settled(plugin_id)
    await services.routes.settled()
    # Services before routes, which may lead to them.
    for kind in _kinds(services, plugin_id):
        present, then = kind.present(), getattr(wanted, kind.name)
        for key in present.keys() - then.keys():
            await kind.delete(key)
        for key, text in then.items():
            if present.get(key) != text:
                await _put(plugin_id, kind, key, text)
    await services.tasks.cancel_after(plugin_id, wanted.tasks, by=by)


async def _put(plugin_id: str, kind: _Kind, key: str, text: str) -> None:
    """Put one; what is refused is logged. Problem ledger_unavailable."""
    try:
        await kind.put(key, text)
    except (HostError, Problem, msgspec.MsgspecError, ValueError) as error:
        if isinstance(error, Problem) and error.code == "ledger_unavailable":
            raise
        log.warning("not_put_back", plugin_id=plugin_id, kind=kind.name, name=key, reason=str(error))


def _kinds(services: HostServices, plugin_id: str) -> Iterator[_Kind]:
    """All kinds, in the order in which they are put."""
    programs, tunnels, monitors, ddns = services.programs, services.tunnels, services.monitors, services.ddns
    yield _Kind(
        name="services",
        present=lambda: {one.name: program_specs.encode(one.spec) for one in programs.of(plugin_id)},
        put=lambda name, text: programs.put(plugin_id, name, program_specs.decode(text)),
        delete=lambda name: programs.delete(plugin_id, name),
    )
    yield _Kind(
        name="tunnels",
        present=lambda: {one.name: program_specs.encode(one.wanted) for one in tunnels.of(plugin_id)},
        put=lambda name, text: tunnels.put_back(plugin_id, name, tunnel_specs.decode(text)),
        delete=lambda name: tunnels.delete(plugin_id, name),
    )
    yield _Kind(
        name="monitors",
        present=lambda: {one.name: monitor_specs.encode(one.spec) for one in monitors.of(plugin_id)},
        put=lambda name, text: monitors.put(plugin_id, name, monitor_specs.decode(text)),
        delete=lambda name: monitors.delete(plugin_id, name),
    )
    yield _Kind(
        name="records",
        # No name of a DNS record has a space.
        present=lambda: {f"{one.spec.name} {one.spec.type}": ddns_specs.encode(one.spec) for one in ddns.of(plugin_id)},
        put=lambda _, text: ddns.put(plugin_id, ddns_specs.decode(text)),
        delete=lambda key: ddns.delete(plugin_id, *key.split(" ")),
    )
    routes = services.routes
    yield _Kind(
        name="routes",
        present=lambda: routes.stored(plugin_id),
        put=lambda _, text: routes.put_back(plugin_id, route_specs.decoded(text)),
        delete=lambda path: routes.delete(plugin_id, path),
    )
