"""Calls that need a permit of their own are refused without it, and again after it is trimmed. Real daemon."""

from __future__ import annotations

import pytest

from tests.house import hostcalls, in_process

TOML = """
[http]
listen = "127.0.0.1:0"
service_listen = "127.0.0.1:0"
[service.programs]
sh = "/bin/sh"
"""
SITE = "http://127.0.0.1:3000"
ROUTE = {"path": "/acme.demo/", "target": "service", "origin": SITE, "public": ["/"]}
SITE_PLUGIN = "acme.site"
PROGRAM = {"name": "one", "program": "sh", "args": ["-c", "exit 0"], "restart": "never"}


@pytest.mark.parametrize(
    ("capability", "call", "params", "other", "permit", "refusal"),
    [
        ("worker:route", "route.put", ROUTE, f"origin={SITE}", f"publish={SITE}", "egress_blocked"),
        (
            "static:read",
            "static.list",
            {"plugin": SITE_PLUGIN},
            "share=acme.elsewhere",
            f"share={SITE_PLUGIN}",
            "bad_params",
        ),
        (
            "task:run",
            "service.put",
            PROGRAM | {"environment": {"BASH_ENV": "/scratch/mine"}},
            "env=BASH",
            "env=BASH_ENV",
            "bad_params",
        ),
    ],
)
async def test_call_needs_its_own_permit(capability, call, params, other, permit, refusal):
    """Publishing a service needs more than `origin` for the plugin's own requests; a variable is granted by name, and
    so is another plugin's files.
    """
    async with in_process.opened(toml=TOML) as home:
        await hostcalls.caller(home, "static:write", accept=("static:write",), plugin_id=SITE_PLUGIN, name="site")
        plugin = await hostcalls.caller(home, capability, accept=(capability,))
        outcomes = []
        for permits in ([], [other], [other, permit], [other]):
            answer = await home.ask("PUT", f"/api/plugins/by-id/{plugin.id}/grants", {"permits": permits})
            assert answer.status == 200, answer
            outcomes.append(await plugin.outcome(call, **params))
        assert outcomes == [refusal, refusal, "ok", refusal]
