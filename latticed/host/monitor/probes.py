"""One check of one target, through the egress guard; whatever happens is a result."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.host.monitor import spec as specs
from latticed.host.monitor.outcomes import down, of_os_error, shown
from latticed.kit import logs
from latticed.ledger.monitors import Result
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.host.egress.guard import Guard
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights

ADDRESSES: Final = 4
"""Of one target, how many are tried."""
log = logs.get_logger()


class Probes:
    """Makes checks. `tls` says whom HTTPS trusts; by default the authorities of this host."""

    def __init__(self, guard: Guard, *, tls: ssl.SSLContext | None = None) -> None:
        self._guard = guard
        self._tls = tls

    async def check(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        """The result of one check under these rights, within `spec.timeout_s`; never raises."""
        try:
            async with asyncio.timeout(spec.timeout_s):
                match spec.kind:
                    case "http":
                        return await self._http(spec, rights)
                    case "tcp":
                        return await self._tcp(spec, rights)
                    case "ping":
                        return await self._ping(spec, rights)
        except TimeoutError:
            return down("timeout", f"no answer within {spec.timeout_s:g} s")
        except HostError as error:
            return _refused(error)
        except OSError as error:
            return of_os_error(error)
        except Exception:
            log.error("monitor_check_failed", kind=spec.kind, exc_info=True)
            return Result(outcome="error", code="internal", reason="the check failed, see the daemon's log")

    async def _http(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        from latticed.host.egress import url
        from latticed.host.monitor import http_probe

        target = url.parse(spec.target)
        addresses = await self._guard.resolve(target.host, target.port, rights, scheme=target.scheme)
        if self._tls is None and target.scheme == "https":
            self._tls = await asyncio.to_thread(ssl.create_default_context)  # reads files
        return await http_probe.check(spec, target, addresses[:ADDRESSES], self._tls)

    async def _tcp(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        host, port = specs.host_and_port(spec.target)
        addresses = (await self._guard.resolve(host, port, rights, scheme="tcp"))[:ADDRESSES]
        found = down("unreachable")
        for address in addresses:
            found = await _dialled(address, port, spec.timeout_s / len(addresses))
            if found.outcome == "up":
                break
        return found

    async def _ping(self, spec: MonitorSpec, rights: EgressRights) -> Result:
        from latticed.host.monitor import ping

        addresses = (await self._guard.resolve(spec.target, 0, rights, scheme="ping"))[:ADDRESSES]
        found = down("unreachable")
        for address in addresses:
            found = await ping.check(address, spec.timeout_s / len(addresses))
            if found.outcome == "up":
                break
        return found


async def _dialled(address: Address, port: int, within_s: float) -> Result:
    """Whether a connection can be made to an address that the guard has allowed."""
    try:
        async with asyncio.timeout(within_s):
            _, writer = await asyncio.open_connection(str(address), port)
    except TimeoutError:
        return down("timeout", "no connection in time")
    except OSError as error:
        return of_os_error(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Result(outcome="up")


def _refused(error: HostError) -> Result:
    """The guard's word: that a name has no address is the target's state, that it may not be dialled is not."""
    match error.code:
        case Denial.DEADLINE_EXCEEDED:
            return down("timeout", error.reason)
        case Denial.SERVICE_UNAVAILABLE:
            return down("unresolved", error.reason)
        case Denial.RATE_LIMITED:
            return Result(outcome="error", code="no_resources", reason=shown(error.reason))
        case _:
            return Result(outcome="blocked", code=error.code, reason=shown(error.reason))
