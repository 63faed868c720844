"""Websockets between a client and a service (RFC 6455): messages are relayed both ways until one side closes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import WSMsgType, hdrs, web

from latticed.ingress import proxy
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from aiohttp import ClientWebSocketResponse

    from latticed.ingress.proxy import ProxiedAnswer, Proxy, ProxyLimits

CLOSE_S: Final = 2.0
"""Seconds that a side has to answer a close frame."""
# 16 bytes in base64 (RFC 6455, section 4.1).
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")
_PROTOCOL: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
# Without 1005, 1006 and 1015, which no endpoint may send, and 1004 (RFC 6455, section 7.4.1).
_SENDABLE: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
# "Internal error" (RFC 6455, section 7.4.1): for a side that ended without a code that may be sent.
_FAILED: Final = 1011


def is_wanted(request: web.BaseRequest) -> bool:
    """Whether a request asks for a websocket; other upgrades are not forwarded."""
    return request.headers.get(hdrs.UPGRADE, "").strip().lower() == "websocket"


async def relay(passed: ProxiedAnswer, through: Proxy) -> web.StreamResponse:
    """Relay messages until one side closes; returns the websocket response, which has been sent and closed.

    Problem only before the handshake is answered: `bad_request`, `busy`, `service_failed`, `service_unavailable`.
    """
    protocols = _asked(passed.request)
    with through.slot(passed.target):
        # The service first: while it is not connected, the client can still be answered with a status.
        back = await _connected(passed, through, protocols)
        front = web.WebSocketResponse(
            protocols=(back.protocol,) if back.protocol else (),
            heartbeat=through.limits.ping_s,
            timeout=CLOSE_S,
            max_msg_size=through.limits.message_bytes,
            compress=False,
        )
        try:
            await front.prepare(passed.request)
            await _passed_on(front, back, through.limits)
        finally:  # also when cancelled: a client that closes disconnects at once
            await _ended(back, front.close_code)
        # Not in the `finally`: what cancels this (a lost client, the end of the daemon) ends the client's side itself.
        await _ended(front, back.close_code)
    return front


def _asked(request: web.BaseRequest) -> tuple[str, ...]:
    """The subprotocols that the client offers; Problem("bad_request") for a bad handshake (RFC 6455, section 4.2.1)."""
    fields = request.headers
    connection = {part.strip().lower() for part in ",".join(fields.getall(hdrs.CONNECTION, [])).split(",")}
    sound = request.method == "GET" and "upgrade" in connection and not request.body_exists
    keys = fields.getall(hdrs.SEC_WEBSOCKET_KEY, [])
    if not sound or fields.get(hdrs.SEC_WEBSOCKET_VERSION) != "13" or len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise Problem("bad_request", "expected a websocket's handshake of version 13")
    offered = [part.strip() for part in ",".join(fields.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, [])).split(",")]
    protocols = tuple(part for part in offered if part)
    if len(protocols) > 16 or not all(_PROTOCOL.fullmatch(one) for one in protocols):
        raise Problem("bad_request", "expected at most 16 subprotocols")
    return protocols


async def _connected(passed: ProxiedAnswer, through: Proxy, protocols: tuple[str, ...]) -> ClientWebSocketResponse:
    """A websocket to the service, with a handshake of its own; Problem service_failed, or service_unavailable."""
    try:
        async with asyncio.timeout(through.limits.head_s), through.connecting(passed.target):
            back = await through.session().ws_connect(
                through.url(passed),
                headers=passed.headers(),
                protocols=protocols,
                max_msg_size=through.limits.message_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                compress=0,
            )
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
        raise proxy.bad_gateway() from error
    # The service chose a subprotocol that was not offered: the handshake has failed (RFC 6455, section 4.1).
    if back.protocol is not None and back.protocol not in protocols:
        await back.close()
        raise proxy.bad_gateway()
    return back


async def _passed_on(front: web.WebSocketResponse, back: ClientWebSocketResponse, limits: ProxyLimits) -> None:
    """Copy both ways until one side closes or fails, or a message cannot be delivered in time."""
    pumps = [asyncio.ensure_future(_pump(front, back, limits)), asyncio.ensure_future(_pump(back, front, limits))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in pumps:
            one.cancel()
        # Before either side is closed: aiohttp refuses two receive() at once, and close() receives too.
        await asyncio.gather(*pumps, return_exceptions=True)


async def _ended(side: Any, code: int | None) -> None:
    """Close one side with the other's close code, if that may be sent (RFC 6455, section 7.4)."""
    fit = code if code in _SENDABLE or 3000 <= (code or 0) <= 4999 else _FAILED
    with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError, TimeoutError):
        await side.close(code=fit)


async def _pump(source: Any, sink: Any, limits: ProxyLimits) -> None:
    """Copy messages from `source` to `sink` until one of them is closed."""
    while True:
        message = await source.receive()
        # A side that does not read must not hold the slot for ever.
        async with asyncio.timeout(limits.write_s):
            if message.type is WSMsgType.TEXT:
                await sink.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await sink.send_bytes(message.data)
            # Close, or an error such as a message over the limit. Pings are answered by aiohttp and not relayed.
            else:
                return
