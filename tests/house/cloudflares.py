"""A strict Cloudflare of the tests: API v4 as far as DNS goes, over TLS, with pages, rate limits and its error codes.

It refuses what the real one refuses; a request that it does not know is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from tests.house import origins
from tests.house.origins import Authority, Seen

TOKEN = "cf-token-0123456789"
HOST = "api.cloudflare.test"
BASE = "/client/v4"


class Refusal(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Cloudflare:
    """Zones and records by id. `left`: requests until the rate limit; `fail`: statuses of the next answers."""

    zones: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: int = 1_000_000
    retry_after: str = "17"
    fail: list[bytes] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    port: int = 0
    ids: itertools.count = field(default_factory=lambda: itertools.count(1))

    def zone(self, name: str, *, status: str = "active") -> str:
        made = f"{next(self.ids):032x}"
        self.zones[made] = {"id": made, "name": name, "status": status}
        return made

    def record(
        self, zone: str, name: str, content: str, *, kind: str = "A", ttl: int = 1, proxied: bool = False
    ) -> str:
        made = f"{next(self.ids):032x}"
        self.records[made] = {
            "id": made,
            "zone": zone,
            "name": name,
            "type": kind,
            "content": content,
            "ttl": ttl,
            "proxied": proxied,
        }
        return made

    def found(self, name: str) -> list[tuple[str, str, int]]:
        """(type, content, ttl) of every record of that name."""
        mine = [one for one in self.records.values() if one["name"] == name]
        return sorted((one["type"], one["content"], one["ttl"]) for one in mine)

    @property
    def writes(self) -> list[str]:
        return [one for one in self.asked if not one.startswith("GET")]

    # The server.

    async def say(self, request: Seen, writer: asyncio.StreamWriter) -> None:
        path, _, query = request.path.partition("?")
        assert request.sni == HOST, request.sni
        self.asked.append(f"{request.method} {path.removeprefix(BASE)}")
        if self.fail:
            writer.write(self.fail.pop(0))
            return
        try:
            body = self._answer(request, path, dict(parse_qsl(query, strict_parsing=True)) if query else {})
            status, extra = "200 OK", []
        except Refusal as refusal:
            errors = [{"code": refusal.code, "message": refusal.message}]
            body = {"success": False, "errors": errors, "messages": [], "result": None}
            status = f"{refusal.status} No"
            extra = [f"Retry-After: {self.retry_after}"] if refusal.status == 429 and self.retry_after else []
        writer.write(origins.answer(json.dumps(body).encode(), "Content-Type: application/json", *extra, status=status))

    def _answer(self, request: Seen, path: str, query: dict[str, str]) -> dict[str, Any]:
        self._check_access(request)
        parts = path.removeprefix(BASE).strip("/").split("/")
        match request.method, parts:
            case "GET", ["zones"]:
                known = {"name", "status", "page", "per_page"}
                return self._page(list(self.zones.values()), query, known, most=50, least=5)
            case "GET", ["zones", zone, "dns_records"]:
                self._check_zone(zone)
                mine = [one for one in self.records.values() if one["zone"] == zone]
                return self._page(mine, query, {"name", "type", "content", "page", "per_page"}, most=100, least=5)
            case "POST", ["zones", zone, "dns_records"]:
                self._check_zone(zone)
                return self._made(zone, self._body(request, required={"type", "name", "content", "ttl"}))
            case "PATCH", ["zones", zone, "dns_records", record]:
                self._check_zone(zone)
                return self._changed(zone, record, self._body(request, required=set()))
        raise Refusal(404, 7000, "No route for that URI")

    def _check_access(self, request: Seen) -> None:
        self.left -= 1
        if self.left < 0:
            raise Refusal(429, 971, "Please wait and consider throttling your request speed")
        scheme, _, token = request.header.get("authorization", "").partition(" ")
        if scheme != "Bearer" or not token.strip():
            raise Refusal(400, 6003, "Invalid request headers")
        if token != TOKEN:
            raise Refusal(403, 9109, f"Invalid access token {token}")

    def _check_zone(self, zone: str) -> None:
        if zone not in self.zones:
            raise Refusal(404, 7003, "Could not route to the zone")

    def _page(self, items: list[dict], query: dict[str, str], known: set[str], *, most: int, least: int) -> dict:
        if unknown := set(query) - known:
            raise Refusal(400, 6007, f"unknown parameters {unknown}")
        page, per_page = int(query.pop("page", "1")), int(query.pop("per_page", "20"))
        if not least <= per_page <= most or page < 1:
            raise Refusal(400, 6007, "per_page out of range")
        fit = [one for one in items if all(one[key] == value for key, value in query.items())]
        pages = -(-len(fit) // per_page)
        shown = fit[(page - 1) * per_page : page * per_page]
        info = {"page": page, "per_page": per_page, "count": len(shown), "total_count": len(fit), "total_pages": pages}
        return {"success": True, "errors": [], "messages": [], "result": shown, "result_info": info}

    def _body(self, request: Seen, *, required: set[str]) -> dict[str, Any]:
        if request.header.get("content-type") != "application/json":
            raise Refusal(400, 6003, "expected JSON")
        body = json.loads(request.body)
        if missing := required - set(body):
            raise Refusal(400, 9000, f"missing {missing}")
        if unknown := set(body) - {"type", "name", "content", "ttl", "proxied", "comment", "tags"}:
            raise Refusal(400, 9207, f"unknown {unknown}")
        if (ttl := body.get("ttl", 1)) != 1 and not 60 <= ttl <= 86_400:
            raise Refusal(400, 9021, "Invalid TTL. Must be between 60 and 86400 seconds, or 1 for Automatic.")
        return body

    def _made(self, zone: str, body: dict[str, Any]) -> dict[str, Any]:
        same = [one for one in self.records.values() if one["name"] == body["name"] and one["zone"] == zone]
        if any(one["type"] == "CNAME" for one in same):
            raise Refusal(400, 81053, "An A, AAAA, or CNAME record with that host already exists.")
        if any(one["type"] == body["type"] and one["content"] == body["content"] for one in same):
            raise Refusal(400, 81058, "An identical record already exists.")
        if not body["name"].endswith(self.zones[zone]["name"]):
            raise Refusal(400, 9000, "DNS name is invalid.")
        made = self.record(
            zone, body["name"], body["content"], kind=body["type"], ttl=body["ttl"], proxied=body.get("proxied", False)
        )
        return {"success": True, "errors": [], "messages": [], "result": self.records[made]}

    def _changed(self, zone: str, record: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.records.get(record, {}).get("zone") != zone:
            raise Refusal(404, 81044, "Record does not exist.")
        if self.records[record]["proxied"] and body.get("ttl", 1) != 1:
            raise Refusal(400, 9021, "the TTL of a proxied record is automatic")
        self.records[record].update(body)
        return {"success": True, "errors": [], "messages": [], "result": self.records[record]}


@contextlib.asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[Cloudflare]:
    """The API at https://HOST:port/client/v4 on loopback."""
    fake = Cloudflare()
    async with origins.serving(fake.say, tls=authority.server(HOST)) as server:
        fake.port = server.port
        yield fake
