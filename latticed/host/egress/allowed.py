"""The only addresses that an aiohttp connector may dial: those that the guard has allowed."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractResolver, ResolveResult

from latticed.kit import made_socket

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from latticed.model.addresses import Address


class AllowedAddresses(AbstractResolver):
    """Resolver and socket factory of a `TCPConnector`: every name resolves to the allowed addresses.

    `addresses` is called for each connection and gives those that are allowed then. PermissionError for a name when
    there are none, and for a socket to any other address.
    """

    def __init__(self, addresses: Callable[[], Collection[Address]]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily | int = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The allowed addresses of this family. Nothing is looked up: the guard has done that."""
        allowed = self._addresses()
        if not allowed:
            raise PermissionError("a name that the guard has not judged")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=_family(address),
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in allowed
            if family in {socket.AF_UNSPEC, _family(address)}
        ]

    async def close(self) -> None:
        """Nothing to close."""

    def socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for `info` as from getaddrinfo(3).

        Checked here too, because aiohttp asks no resolver when the host of a URL is an address.
        """
        # Left by `EgressClient.send_inside` for this request alone: in that network the guard rules nothing.
        if (made := made_socket.take()) is not None:
            return made
        family, kind, proto, _, address = info
        if ip_address(address[0]) not in self._addresses():
            raise PermissionError("an address that the guard has not judged")
        return socket.socket(family, kind, proto)


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
