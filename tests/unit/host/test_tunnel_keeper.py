"""tunnel.* from the call to the connected process: files, exit codes, failed changes; with the tests' cloudflared."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import stat
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from latticed.host import permissions
from latticed.host.call import Caller, HostError
from latticed.host.program.supervised import ProgramDeps
from latticed.host.tunnel import files
from latticed.host.tunnel import spec as specs
from latticed.host.tunnel.calls import TunnelCalls
from latticed.host.tunnel.command import TunnelDeps
from latticed.host.tunnel.keeper import TunnelKeeper
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.ledger import programs as rows
from latticed.model import egress
from latticed.model.restart import RestartPolicy
from latticed.settings.programs import TunnelSettings as Settings
from latticed.system.cloudflared.plugin import HOPELESS
from tests.house import children, confinements, edges, processes

A, B = Caller(plugin_id="acme.a"), Caller(plugin_id="acme.b")
DEADLINE_S = processes.PATIENCE_S
QUICK = RestartPolicy(base_s=0.05, ceiling_s=0.1, jitter=0.0)
REST = {"service": "http_status:404"}


async def until(condition, what=""):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.005)


def rule(hostname="app.example.com", service="http://backend.lan:8080", **more):
    return {"hostname": hostname, "service": service, **more}


@dataclass
class World:
    """The service over a real ledger, with its directories."""

    tunnels: TunnelKeeper
    service: dict
    allowed: set
    bound: list
    spawner: confinements.Spawner
    home: Path
    ledger: object

    async def call(self, method, caller=A, **params):
        served = self.service[method]
        return await served.answer(caller, msgspec.convert(params, served.params, strict=True))

    async def put(self, *rules, caller=A, **more):
        wanted = {"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json", "ingress": [*rules, REST], **more}
        return await self.call("tunnel.put", caller, **wanted)

    async def status(self):
        (found,) = (await self.call("tunnel.status", name="main"))["tunnels"]
        return found

    @property
    def one(self):
        (found,) = self.tunnels.of(A.plugin_id)
        return found

    async def until_state(self, state):
        await until(lambda: self.one.view()["state"] == state, f"{state}, found {self.one.view()}")
        return await self.status()

    async def until_error(self, code):
        await until(lambda: self.one.error is not None and self.one.error[0] == code, f"{code}")
        return await self.status()

    def hurry(self):
        """From now on a change must be connected soon: for those that never are."""
        self.tunnels.settings = replace(self.tunnels.settings, ready_s=1.0)

    def file(self, name):
        return next(iter(sorted((self.home / "state/tunnels").glob(f"*/{name}"))), None)

    def credentials(self):
        return list((self.home / "run/tunnels").glob("*/*"))

    def row(self):
        return self.ledger.read(lambda db: rows.get(db, A.plugin_id, "tunnel", "main"))


@contextlib.asynccontextmanager
async def world(home, *, edge="", **settings):
    keys = home / "keys"
    if not keys.exists():
        edges.write_keys(keys)
        edges.install(home, edge=edge)
    wanted = Settings(
        **{
            "program": str(home / "cloudflared"),
            "credentials_dir": str(keys),
            "check_s": 0.1,
            "ready_s": DEADLINE_S,
            **settings,
        }
    )
    clock, spawner, allowed = SystemClock(), confinements.Spawner(), {A.plugin_id, B.plugin_id}
    bound = ["http://backend.lan:8080=127.0.0.1", "https://secure.lan=10.0.0.5", "http://10.0.0.6:81"]

    def origins(plugin_id):
        return tuple(egress.origin(one) for one in bound) if plugin_id == A.plugin_id else ()

    async with open_ledger(home / "state", clock=clock) as ledger:
        tools = ProgramDeps(spawner=spawner, clock=clock, roll=lambda: 0.5)
        deps = TunnelDeps(program=tools, settings=wanted, origins=origins, policy=QUICK)
        tunnels = TunnelKeeper(
            ledger,
            deps,
            refusal=lambda one: None if one in allowed else permissions.judge(permissions.UNKNOWN),
            state_dir=home / "state",
            runtime_dir=home / "run",
        )
        async with tunnels:
            service = {one.method: one for one in TunnelCalls(tunnels, origins=origins).calls()}
            yield World(tunnels, service, allowed, bound, spawner, home, ledger)


@pytest.fixture
async def here(tmp_path):
    async with world(tmp_path) as opened:
        yield opened


def tree():
    return {pid for pid in children.descendants(os.getpid()) if children.alive(pid)}


@pytest.mark.parametrize("kind", ["credentials", "token"])
async def test_tunnel_connects_and_stops(here, kind):
    """Connected by /ready; its files are private, no answer has its secret, stopping removes all."""
    given = {"credentials": ""} | {kind: f"main.{'json' if kind == 'credentials' else 'token'}"}
    made = await here.put(
        rule(), rule("*.example.org", "https://secure.lan", path="/api/v1.2"), rule("ip.example.org", "http://10.0.0.6:81"),
        **given,
    )  # fmt: skip
    assert made["ok"]
    found = await here.until_state("connected")
    assert found["last_error"] is None
    config = json.loads(here.file("connector-*.yml").read_text())
    assert config["ingress"] == [
        {
            "hostname": "app.example.com",
            "service": "http://127.0.0.1:8080",
            "originRequest": {"httpHostHeader": "backend.lan:8080"},
        },
        {
            "hostname": "*.example.org",
            "path": "^/api/v1\\.2",
            "service": "https://10.0.0.5:443",
            "originRequest": {"httpHostHeader": "secure.lan", "originServerName": "secure.lan"},
        },
        {"hostname": "ip.example.org", "service": "http://10.0.0.6:81"},
        {"service": "http_status:404"},
    ]
    assert stat.S_IMODE(here.file("connector-*.yml").stat().st_mode) == 0o600
    assert here.file("candidate.yml") is None
    (secret,) = here.credentials()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert edges.SECRET not in json.dumps(found) + here.file("connector-*.yml").read_text()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree()]
    environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in tree()]
    assert any(b"--no-autoupdate" in one and b"--metrics\x00127.0.0.1:" in one for one in commands)
    assert not any(edges.SECRET.encode() in one for one in commands + environments)
    assert (await here.call("tunnel.delete", name="main"))["ok"]
    assert (tree(), here.credentials(), here.file("connector-*.yml")) == (set(), [], None)
    assert not (await here.call("tunnel.delete", name="main"))["ok"]


async def test_tunnel_without_name_service_backs_off(here):
    """Exit code 1 is retried without a limit; its code says what is missing."""
    await here.put(rule("offline.example.com"))
    await until(lambda: here.one.program.restarts > 7, "several tries")
    found = await here.status()
    assert found["last_error"]["code"] == "no_name_service"
    assert found["last_error"]["message"].endswith("no such host")
    assert found["state"] != "failed"


async def test_refused_tunnel_credentials_are_not_retried(here):
    """Exit code 255 fails at once; putting the tunnel again retries."""
    edges.write_credentials(here.home / "keys/main.json", secret=base64.b64encode(bytes(32)).decode())
    await here.put(rule())
    found = await here.until_state("failed")
    assert found["last_error"]["code"] == "credentials_refused"
    assert "exited 255" in found["last_error"]["message"]
    spawned = here.spawner.spawned
    here.tunnels.recheck(A.plugin_id)
    await asyncio.sleep(0.3)
    assert (here.spawner.spawned, tree()) == (spawned, set())
    edges.write_credentials(here.home / "keys/main.json")
    await here.put(rule())
    await here.until_state("connected")


async def test_tunnel_is_connected_only_by_its_ready_page(here):
    """A server that answers every path with 200 does not count."""
    await here.put(rule("unready.example.com"))
    await here.until_state("connecting")
    await asyncio.sleep(0.5)
    assert (await here.status())["state"] == "connecting"


async def test_tunnel_whose_process_dies_is_restarted(here):
    await here.put(rule("dies.example.com"))
    await until(lambda: here.one.program.restarts > 1, "another start")
    assert (await here.status())["last_error"]["code"] == "exited"


async def test_remotely_managed_tunnel_fails(here):
    """Rules from the provider's account could lead to origins that the operator has not bound."""
    await here.put(rule("managed.example.com"))
    found = await here.until_state("failed")
    assert found["last_error"]["code"] == "remotely_managed"
    assert tree() == set()


async def test_tunnel_change_that_connects_is_recorded(here):
    """The row has the new spec as `candidate` until it is connected, then as `spec`. One connector is left."""
    await here.put(rule())
    await here.until_state("connected")
    made = await here.put(rule("other.example.com"))
    assert made["trying"]
    assert json.loads(here.row().candidate)["ingress"][0]["hostname"] == "other.example.com"
    await until(lambda: here.one.trial is None, "the change to be kept")
    assert (await here.status())["ingress"][0]["hostname"] == "other.example.com"
    assert (json.loads(here.row().spec)["ingress"][0]["hostname"], here.row().candidate) == ("other.example.com", "")
    await here.one.drained()
    assert tree() == children.family(here.one.program.pid)


@pytest.mark.parametrize("bad", ["unready.example.com", "offline.example.com", "managed.example.com"])
async def test_tunnel_change_that_does_not_connect_is_undone(here, bad):
    """The connector before is not touched; last_error says what failed."""
    await here.put(rule())
    pid = (await here.until_state("connected"))["pid"]
    before = here.file("connector-*.yml").read_bytes()
    here.hurry()
    await here.put(rule(bad))
    found = await here.until_error("change_undone")
    assert "the one before goes on" in found["last_error"]["message"]
    found = await here.status()
    assert (found["state"], found["pid"]) == ("connected", pid)
    assert (found["ingress"][0]["hostname"], found["trying"]) == ("app.example.com", False)
    assert here.file("connector-*.yml").read_bytes() == before
    assert (here.row().candidate, tree()) == ("", children.family(here.one.program.pid))


async def test_invalid_tunnel_change_leaves_tunnel_running(here):
    """Spec and credentials are validated before the running tunnel is stopped."""
    await here.put(rule())
    pid = (await here.until_state("connected"))["pid"]
    with pytest.raises(HostError, match=r"bad_params: ingress: .*rule 1 is invalid"):
        await here.put(rule("refused.example.com"))
    with pytest.raises(HostError, match=r"service_unavailable: .* cannot be read"):
        await here.put(rule("new.example.com"), credentials="none.json")
    found = await here.status()
    assert (found["pid"], found["state"]) == (pid, "connected")
    assert here.file("candidate.yml") is None
    assert (await here.put(rule()))["state"] == "connected"
    assert (await here.status())["pid"] == pid


async def test_tunnel_stops_when_plugin_may_not_act(here):
    """The capability, or the binding of one of its origins, is revoked; granted again, it starts."""
    await here.put(rule())
    await here.until_state("connected")
    for take, give in (
        (lambda: here.allowed.discard(A.plugin_id), lambda: here.allowed.add(A.plugin_id)),
        (lambda: here.bound.pop(0), lambda: here.bound.insert(0, "http://backend.lan:8080=127.0.0.2")),
    ):
        take()
        here.tunnels.recheck(A.plugin_id)
        await here.until_state("stopped")
        await until(lambda: not tree() and not here.credentials(), "nothing to be left")
        give()
        await here.until_state("connected")
    assert "http://127.0.0.2:8080" in here.file("connector-*.yml").read_text(), "bound to another address meanwhile"


async def test_tunnel_starts_again_after_restart(tmp_path):
    """An interrupted change is dropped."""
    async with world(tmp_path) as here:
        await here.put(rule())
        await here.until_state("connected")
        await here.put(rule("unready.example.com"))
    assert tree() == set()
    left = tmp_path / "run/tunnels" / "acme.a+main"
    left.mkdir(parents=True, exist_ok=True)
    (left / "credentials.json").write_text("of a killed process")
    async with world(tmp_path) as here:
        found = await here.until_state("connected")
        assert found["ingress"][0]["hostname"] == "app.example.com"
        assert found["last_error"]["code"] == "change_interrupted"
        assert here.row().candidate == ""
        assert await here.tunnels.forget(A.plugin_id) == 1
        assert here.credentials() == []


async def test_tunnel_over_quota_and_tunnels_of_other_plugins_are_refused(tmp_path):
    """So is any tunnel while the operator has named no cloudflared."""
    async with world(tmp_path, plugin_tunnels=1) as here:
        await here.put(rule())
        with pytest.raises(HostError, match="quota_exceeded"):
            await here.put(rule(), name="second")
        with pytest.raises(HostError):
            await here.put(rule("refused.example.com"), name="third")
        # What was refused leaves no directory, which nobody would remove.
        assert [one.name for one in (here.home / "state" / "tunnels").iterdir()] == [f"{A.plugin_id}+main"]
        assert (await here.call("tunnel.status", B))["tunnels"] == []
        with pytest.raises(HostError, match="not_found"):
            await here.call("tunnel.status", B, name="main")
        with pytest.raises(HostError, match="egress_blocked: service: the operator has not bound"):
            await here.put(rule(), caller=B)
    async with world(tmp_path, program="") as here:
        with pytest.raises(HostError, match="service_unavailable: the operator has named no cloudflared"):
            await here.put(rule("new.example.com"), name="main")


async def test_tunnel_validation_is_cancelled_when_plugin_may_not_act(here):
    """Nothing is stored: otherwise another publisher's plugin of that id would get the tunnel."""
    asked = asyncio.ensure_future(here.put({"hostname": "ponders.example.com", "service": "http_status:404"}))
    await until(tree, "the check to run")
    here.allowed.remove(A.plugin_id)
    here.tunnels.recheck(A.plugin_id)
    await here.tunnels.drained(A.plugin_id)
    assert tree() == set()
    await here.tunnels.forget(A.plugin_id)
    with pytest.raises(HostError, match="may not have tunnels any more"):
        await asked
    assert (here.row(), here.tunnels.of(A.plugin_id)) == (None, [])


async def test_validation_that_is_cancelled_while_its_rules_are_written_leaves_no_file(here, monkeypatch):
    """A slow disk writes them only then."""
    writing, go_on, written = threading.Event(), threading.Event(), threading.Event()

    def write(*what, original=files.write):
        writing.set()
        go_on.wait(DEADLINE_S)
        original(*what)
        written.set()

    monkeypatch.setattr(files, "write", write)
    asked = asyncio.ensure_future(here.put())
    assert await asyncio.to_thread(writing.wait, DEADLINE_S)
    here.allowed.remove(A.plugin_id)
    here.tunnels.recheck(A.plugin_id)
    await asyncio.wait({asked}, timeout=0.5)
    go_on.set()
    await asyncio.to_thread(written.wait, DEADLINE_S)
    with pytest.raises(HostError, match="may not have tunnels any more"):
        await asked
    assert here.file("candidate.yml") is None


def checks():
    """The cloudflared that checks rules now."""
    found = set()
    for pid in tree():
        with contextlib.suppress(OSError):
            if b"validate" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.add(pid)
    return found


@pytest.mark.parametrize("end", ["late", "killed"])
async def test_check_of_tunnel_rules_that_does_not_end_by_itself_says_nothing_of_them(here, monkeypatch, end):
    """A host that is busy or out of memory: the plugin tries the same rules again."""
    if end == "late":
        monkeypatch.setattr("latticed.host.tunnel.command.ANSWER_S", 0.05)
    asked = asyncio.ensure_future(here.put({"hostname": "ponders.example.com", "service": "http_status:404"}))
    if end == "killed":
        await until(checks, "the check to run")
        (pid,) = checks()
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(HostError, match="took longer than" if end == "late" else "killed by SIGKILL") as refused:
        await asked
    assert refused.value.code.value == "service_unavailable"
    assert refused.value.code.value not in HOPELESS
    assert (here.row(), tree()) == (None, set())


async def test_tunnel_that_is_put_back_while_its_plugin_may_have_none_runs_again_once_it_may(here):
    """A version that was revoked had changed it: what the one before had needs no trial beside it."""
    await here.put(rule())
    before = (await here.until_state("connected"), here.one.wanted)[1]
    await here.put(rule(hostname="other.example.com"))
    await until(lambda: here.one.trial is None and here.one.wanted != before, "the change to serve")
    here.allowed.remove(A.plugin_id)
    here.tunnels.recheck(A.plugin_id)
    await here.tunnels.put_back(A.plugin_id, "main", before)
    assert (here.one.wanted, here.one.program.started, here.credentials()) == (before, False, [])
    row = here.row()
    assert (specs.decode(row.spec), row.candidate) == (before, "")
    here.allowed.add(A.plugin_id)
    here.tunnels.recheck(A.plugin_id)
    await here.until_state("connected")
    assert here.one.wanted == before
