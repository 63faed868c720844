"""The real cloudflared, where CLOUDFLARED names one. No trusted package of it exists, so nothing installs one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess

import msgspec
import pytest

from latticed.host.program.rules import ProgramEnded
from latticed.host.tunnel import command, ends
from latticed.host.tunnel import spec as specs
from tests.house import edges
from tests.unit.host.test_tunnel_keeper import REST, A, rule, world

NAMED = os.environ.get("CLOUDFLARED", "")
pytestmark = pytest.mark.skipif(not NAMED, reason="CLOUDFLARED names no real cloudflared")


async def test_real_cloudflared_says_its_version_and_takes_what_is_rendered(tmp_path):
    """Confined and without network, as for every tunnel.put."""
    async with world(tmp_path, program=NAMED) as here:
        assert (await command.version(here.tunnels._deps))[:2] == "20"
        rules = [rule(), rule("*.example.org", "https://secure.lan", path="/api"), REST]
        asked = {"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json", "ingress": rules}
        spec = specs.checked(msgspec.convert(asked, specs.TunnelPut), here.tunnels._deps.origins(A.plugin_id))
        await here.tunnels._made(A.plugin_id, "main", spec).validate(spec)


@pytest.mark.root
async def test_real_cloudflared_without_name_service_ends_as_we_read_it(tmp_path):
    """In a network namespace without a link: exit 1, and words of the DNS."""
    keys = edges.write_keys(tmp_path / "keys")
    config = tmp_path / "config.yml"
    rules = [{"hostname": "offline.example.com", **REST}, REST]
    plain = {"tunnel": edges.TUNNEL, "credentials-file": str(keys / "main.json"), "ingress": rules}
    edges.write_private(config, json.dumps(plain).encode())
    args = ("tunnel", "--config", str(config), "--no-autoupdate", "--metrics", "127.0.0.1:0", "run")
    ran = await asyncio.to_thread(
        subprocess.run, ["unshare", "--net", NAMED, *args], capture_output=True, timeout=120, check=False
    )
    last = ran.stderr.decode().strip().splitlines()[-1]
    ended = ProgramEnded(code="exited", message=f"exited; it said last: {last}", status=ran.returncode)
    assert (ran.returncode, ends.named(ended).code) == (1, "no_name_service"), last
