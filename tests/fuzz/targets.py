"""Fuzz targets, one per reader of untrusted bytes: each takes any bytes, and raises only for a fault in latticed."""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from latticed.bundle import decode
from latticed.bundle.refusal import BundleRefused
from latticed.host.call import HostError
from latticed.host.egress import url
from latticed.host.route import public_paths, template
from latticed.ingress import forwarding, request_target, same_origin
from latticed.kit import strict_json, text
from latticed.model import egress, plan
from latticed.model.errors import Problem
from latticed.plans import protocol
from latticed.runners import jsonrpc, stdio_json
from latticed.trust import policy
from tests.house import bundles

AUTHOR = bundles.author(seed=bytes(range(32)))
V2 = {"runtime": {"protocol": "latticed-stdio-1", "args": ["-v"]}, "egress": {"hosts": ["api.example.org:443"]}}

SCHEMA = {
    "type": "object",
    "properties": {"a": {"pattern": "^[a-z]+$"}, "b": {"$ref": "#/$defs/b"}},
    "$defs": {"b": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    judge: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def _manifest(data: bytes) -> None:
    try:
        decode.decode(data)
    except BundleRefused as refused:
        assert refused.reason  # noqa: PT017 - any input may be refused
        assert text.escape(refused.reason) == refused.reason  # noqa: PT017 - but only in words that are safe to print


def _policy(data: bytes) -> None:
    with contextlib.suppress(Problem):
        assert policy.decode(policy.encode(policy.decode(data))) == policy.decode(data)


def _json(data: bytes) -> None:
    with contextlib.suppress(strict_json.InvalidJson):
        json.dumps(strict_json.loads(data), allow_nan=False).encode()


async def _served(method: str, params: dict[str, Any] | bytes, _answer: object = None) -> Any:
    if method == "refused":
        raise HostError("bad_params", "no")
    return len(params)


async def _refused(_method: str, _line: bytes, error: HostError) -> None:
    raise error


LOOP = asyncio.new_event_loop()
QUIET = logging.getLogger("fuzzed")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False


def _session(data: bytes) -> None:
    """latticed-stdio-1, while `health` waits for its answer."""

    async def talk() -> None:
        written: list[bytes] = []
        codes: list[str] = []
        session = jsonrpc.JsonRpcSession(
            write=written.append,
            serve=_served,
            refuse=lambda _method, _line, error, answer: answer(None, error),
            flow=lambda _: None,
            broken=lambda code, _: codes.append(code),
        )
        asked = asyncio.ensure_future(session.ask("health", {}))
        await asyncio.sleep(0)
        for at in range(0, len(data), 4_096):
            session.feed(data[at : at + 4_096])
            await asyncio.sleep(0)
        await session.close()
        with contextlib.suppress(Problem):
            await asked
        assert set(codes) <= {"protocol_error", "message_too_large"}
        for line in b"".join(written).splitlines():
            json.loads(line)

    LOOP.run_until_complete(talk())


def _invocation(data: bytes) -> None:
    """stdio-json-v1: what one process writes."""

    async def talk() -> None:
        written: list[bytes] = []
        found = stdio_json.Invocation(
            answer=written.append, serve=_served, refuse=_refused, max_line_bytes=1 << 20, max_host_calls=64
        )
        found.feed(data)
        await asyncio.sleep(0)
        found.ended("ended", "it ended")
        with contextlib.suppress(Problem):
            reply = await found.outcome
            json.dumps(reply).encode()
        await found.close()
        for line in b"".join(written).splitlines():
            json.loads(line)

    LOOP.run_until_complete(talk())


class _Transport(asyncio.Transport):
    """Takes what a server answers; closing it loses the connection, as a socket's end does."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.sent = bytearray()
        self.gone = False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.gone

    def close(self) -> None:
        self.gone = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def _page(request: web.BaseRequest) -> web.StreamResponse:
    """A request to our listeners up to the handler: target, Host, Origin, headers, body."""
    try:
        asked = request_target.parse(request.raw_path)
        same_origin.check(request.method, request.headers.get("Host", ""), request.headers)
        fields = forwarding.asked(request.headers, origin="http://127.0.0.1:1", host="127.0.0.1:1")
        forwarding.answered(CIMultiDict(request.headers), origin="http://127.0.0.1:1", prefix="/a/", private=True)
        assert not {"Authorization", "Remote-User", "X-Forwarded-For"} & set(fields)
        public_paths.is_public(("/download/*/*", "/a/**"), asked.path)
        await asyncio.wait_for(request.read(), 0)
    except (Problem, TimeoutError, web.HTTPException):
        return web.Response(status=400)
    return web.Response(text="ok")


def _requests(data: bytes) -> None:
    async def talk() -> None:
        server = web.Server(_page, access_log=None, logger=QUIET)
        handler, transport = server(), _Transport()
        handler.connection_made(transport)
        handler.data_received(data)
        for _ in range(8):
            await asyncio.sleep(0)
        handler.connection_lost(None)
        await server.shutdown(0)
        assert not transport.sent or transport.sent.startswith(b"HTTP/"), bytes(transport.sent[:80])

    LOOP.run_until_complete(talk())


def _template(data: bytes) -> None:
    """Rendered with values that look like references: one pass, so they stay text."""
    try:
        parsed = template.parse(data)
    except Problem as problem:
        assert problem.code == "source_blocked"  # noqa: PT017 - what it may raise, and nothing else
    else:
        values = dict.fromkeys((template.PATH, *parsed.queries, *parsed.stored), "{{method}}<")
        shown = template.render(parsed.parts, values, escape=html.escape)
        assert shown.count(b"{{method}}&lt;") >= sum(part in values for part in parsed.parts)


def _helper(data: bytes) -> None:
    """A request to the root helper: refused, or the same after it was written anew."""
    with contextlib.suppress(Problem):
        request = protocol.decode_request(data)
        assert protocol.decode_request(protocol.encode(request)) == request
        if isinstance(request, protocol.Offer):
            with contextlib.suppress(plan.BadIntent):
                plan.canonical(request.kind, request.intent)


def _urls(data: bytes) -> None:
    said = data.decode("utf-8", "replace")
    with contextlib.suppress(HostError):
        target = url.parse(said)
        assert target.scheme in {"http", "https"}
        url.refer(target, said)
    with contextlib.suppress(ValueError):
        assert str(egress.origin(str(egress.origin(said)))) == str(egress.origin(said))
    with contextlib.suppress(Problem):
        request_target.parse(said)
    egress.is_pattern(said)
    public_paths.fault(said)


def _signed(raw: dict[str, Any]) -> bytes:
    return json.dumps(bundles.signed(bundles.with_digest(raw, b"x"), b"x", AUTHOR)).encode()


ALL: dict[str, Target] = {
    "manifest": Target(
        judge=_manifest,
        seeds=(
            _signed(bundles.manifest_v1()),
            _signed(bundles.manifest_v2(**V2, config=SCHEMA)),
            b"{}",
            b"[1.5]",
        ),
    ),
    "policy": Target(judge=_policy, seeds=(bundles.policy_bytes(AUTHOR), b'{"revoked":{"plugins":["a.b@*"]}}')),
    "json": Target(judge=_json, seeds=(b'{"a":[1,2.5e3,"\\ud83d\\ude00",null,true]}', b"[[[[]]]]", b'"\xc3\xa9"')),
    "session": Target(
        judge=_session,
        seeds=(
            b'{"jsonrpc":"2.0","id":1,"result":{"status":"healthy"}}\n',
            b'{"jsonrpc":"2.0","id":"a","method":"kv.get","params":{"key":"a"}}\n{"jsonrpc":"2.0","id":2,"method":"x"}\n',
            b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"\\ud800"}}\n',
        ),
    ),
    "invocation": Target(
        judge=_invocation,
        seeds=(
            b'{"host_call":{"id":1,"method":"kv.get","params":{"key":"a"}}}\n{"ok":true,"message":"","plan":1}\n',
            b'{"ok":false,"error":"no","result":1e400}\n',
        ),
    ),
    "requests": Target(
        judge=_requests,
        seeds=(
            b"GET /a.b/x?c=d HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: X-A\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nCookie: a=b; latticed-session=c\r\n\r\nabc",
        ),
    ),
    "template": Target(
        judge=_template, seeds=(b"hi {{path}} {{kv.default.a}} {{query.x}}", b"fetch(1)", b"{{{{path}}}}")
    ),
    "helper": Target(
        judge=_helper,
        seeds=(
            b'{"verb":"offer","kind":"nft","intent":{"a":[1,"\xc3\xa9"]},"secrets":[]}\n',
            b'{"verb":"apply","plan":"' + b"0" * 64 + b'","confirm_within_s":60,"source":"::1"}\n',
            b'{"verb":"observe","kind":"","steps_after":-1}\n',
        ),
    ),
    "urls": Target(
        judge=_urls,
        seeds=(
            b"https://api.example.org:443/a/../b?c=%2e#d",
            b"http://[::ffff:1.2.3.4]:80=10.0.0.1",
            b"*.example.net:443",
            b"//a\\@b/",
        ),
    ),
}
