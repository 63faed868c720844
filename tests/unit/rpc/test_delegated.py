"""Delegated work over the control API: real keepers, a real socket."""

from __future__ import annotations

import asyncio

from tests.house import hostcalls, in_process, processes
from tests.house.hostcalls import ROWS

OF = {"ddns": "records", "monitors": "monitors", "services": "services", "routes": "routes"}
CALLS = {"ddns": "ddns.put", "monitors": "monitor.put", "services": "service.put", "routes": "route.put"}


async def rows(stage, kind, query=""):
    answer = await stage.home.ask("GET", f"/api/{kind}{query}")
    assert answer.status == 200, answer
    assert answer["next"] is None
    return answer[OF[kind]]


async def test_delegated_work_is_listed_and_a_denied_record_retried():
    """Sorted by plugin; what a disabled plugin had is `resting`."""
    async with hostcalls.standing() as stage:
        for kind, call in CALLS.items():
            service = hostcalls.service_of(call)
            await stage.callers[service].call(call, **stage.fill(ROWS[call].good))
            (row,) = await rows(stage, kind, f"?plugin=acme.{service}")
            assert row["plugin"] == f"acme.{service}"
            assert await rows(stage, kind) == [row] or kind in {"ddns", "services"}  # these move on by themselves
            assert await rows(stage, kind, "?plugin=acme.mail") == []
            assert (await stage.home.ask("GET", f"/api/{kind}?plugin=acme.nobody")).code == "not_found"
        (route,) = await rows(stage, "routes")
        assert (route["path"], route["target"], route["state"]) == ("/acme.route/x/", "template", "served")
        assert "hello" not in str(route), "its template is its plugin's"
        (monitor,) = await rows(stage, "monitors")
        assert monitor["resting"] is False

        async def tried():
            (record,) = await rows(stage, "ddns")
            return record if record["failures"] else None

        await _until(tried)
        record = await tried()
        assert record["state"] == "denied", record
        report = await stage.home.ask("GET", "/api/plugins/by-id/acme.ddns?explain=1")
        (named,) = report["causes"]["denied_records"]
        assert (named["name"], named["code"]) == ("home.example.org", record["last_error"]["code"])
        before = record["last_error"]["at"]
        url = "/api/ddns/acme.ddns/home.example.org/retry"
        again = await stage.home.ask("POST", url, {"type": "A"})
        assert [(one["name"], one["type"]) for one in again["records"]] == [("home.example.org", "A")]
        (told,) = stage.home.events(action="ddns.retry")
        assert (told["target"], told["decision"]) == ("acme.ddns", "allow")
        assert told["detail"] == {"name": "home.example.org", "type": "A"}

        async def tried_again():
            (record,) = await rows(stage, "ddns")
            return record["last_error"]["at"] > before

        await _until(tried_again)
        for body, status in (({"type": "AAAA"}, 404), ({"type": "MX"}, 400), ({"name": "x"}, 400)):
            assert (await stage.home.ask("POST", url, body)).status == status
        assert (await stage.home.ask("POST", "/api/ddns/acme.ddns/home/retry", {})).code == "bad_request"
        assert (await stage.home.ask("POST", "/api/ddns/acme.mail/home.example.org/retry", {})).code == "not_found"
        for service in ("ddns", "monitor", "route"):
            await stage.home.decide(f"acme.{service}", "disabled")
        assert [row["resting"] for kind in ("ddns", "monitors") for row in await rows(stage, kind)] == [True, True]
        (route,) = await rows(stage, "routes")
        assert (route["state"], route["url"]) == ("resting", None)


async def test_worker_routes_are_listed_while_armed():
    """A page starts after the last row of the one before."""
    async with in_process.opened(real=True) as home:
        for name in ("a", "b", "c"):
            home.drop(
                name,
                id=f"acme.{name}",
                type="worker",
                v2=True,
                capabilities=["worker:route"],
                artifact=b"hello {{path}}",
            )
            await home.seen(f"acme.{name}")
            for status in ("installed", "active"):
                assert (await home.decide(f"acme.{name}", status)).status == 200
        first = await home.ask("GET", "/api/routes?limit=2")
        second = await home.ask("GET", f"/api/routes?limit=2&after={first['next']}")
        paths = [row["path"] for row in (*first["routes"], *second["routes"])]
        assert (paths, len(first["routes"])) == (["/acme.a/", "/acme.b/", "/acme.c/"], 2)
        assert second["next"] is None
        assert {row["state"] for row in first["routes"]} == {"served"}


async def _until(condition):
    async with asyncio.timeout(processes.PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - it asks over the socket
            await asyncio.sleep(0.05)
