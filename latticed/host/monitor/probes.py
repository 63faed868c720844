"""One check of one target, of each kind, through the egress guard. Probes observe; `rules` judges what they report."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from latticed.host.egress import authorities
from latticed.host.monitor import rules
from latticed.host.monitor import spec as specs
from latticed.kit import logs

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from latticed.host.egress.guard import Guard
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.ledger.monitors import Result
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights

ADDRESSES: Final = 4
"""How many addresses of one target are tried; they share the time of the check."""
log = logs.get_logger()


class Probes:
    """Makes checks. `guard` decides where they may go; `tls`: which authorities https trusts, by default those of this
    host.
    """

    def __init__(self, guard: Guard, *, tls: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._tls = tls

    async def check(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        """The result of one check under these rights, within `spec.timeout_s`. Raises nothing but CancelledError.

        The result has no number, time or duration yet: `MonitorKeeper` adds them.
        """
        try:
            async with asyncio.timeout(spec.timeout_s):
                match spec.kind:
                    case "http":
                        return await self._http(spec, rights)
                    case "tcp":
                        return await self._tcp(spec, rights)
                    case "ping":
                        return await self._ping(spec, rights)
        # Everything: a fault here must be a result of this check and not end the keeper's run without one.
        except Exception as error:
            if isinstance(error, rules.CheckError):
                return rules.of_error(error, late=f"no answer within {spec.timeout_s:g} s")
            log.error("monitor_check_failed", kind=spec.kind, exc_info=True)
            return rules.INTERNAL

    async def _http(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        """The result of one GET; raises `rules.CheckError`."""
        from latticed.host.egress import url
        from latticed.host.monitor import http_probe

        target = url.parse(spec.target)
        addresses = await self._guard.resolve(target.host, target.port, rights, scheme=target.scheme)
        tls = None if target.scheme == "http" else self._tls or await authorities.trusted()
        answer = await http_probe.check(spec, target, addresses[:ADDRESSES], tls)
        return rules.of_answer(answer, spec, now_s=time.time())

    async def _tcp(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        """`up` as soon as a connection is made; nothing is sent. Raises HostError of the guard."""
        host, port = specs.host_and_port(spec.target)
        addresses = await self._guard.resolve(host, port, rights, scheme="tcp")
        return await _first_up(
            addresses, lambda address: _connect(address, port), spec.timeout_s, late="no connection in time"
        )

    async def _ping(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        """`up` as soon as an echo is answered. Raises HostError of the guard."""
        from latticed.host.monitor import ping

        addresses = await self._guard.resolve(spec.target, 0, rights, scheme="ping")
        return await _first_up(addresses, ping.check, spec.timeout_s, late="no answer in time")


async def _first_up(
    addresses: Sequence[Address], attempt: Callable[[Address], Awaitable[None]], timeout_s: float, *, late: str
) -> Result:
    """`up` if `attempt` succeeds at one of the first ADDRESSES addresses, else the result of the last attempt.

    Each address gets an equal share of `timeout_s`, so that a silent one leaves time for the next. `late` is the reason
    of a result that ran out of its share.
    """
    tried = addresses[:ADDRESSES]
    found = rules.down("unreachable")
    for address in tried:
        try:
            async with asyncio.timeout(timeout_s / len(tried)):
                await attempt(address)
        # OSError includes the TimeoutError of asyncio.timeout.
        except (OSError, rules.PingUnsupported) as error:
            found = rules.of_error(error, late=late)
        else:
            return rules.UP
    return found


async def _connect(address: Address, port: int) -> None:
    """Connect to an address that the guard has allowed, and close the connection; nothing is sent. OSError."""
    _, writer = await asyncio.open_connection(str(address), port)
    writer.close()
    # The peer may reset the connection instead of closing it. It was made, which is all that is asked.
    with contextlib.suppress(OSError):
        await writer.wait_closed()
