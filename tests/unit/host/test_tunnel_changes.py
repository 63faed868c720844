"""Rules, settings and grants that change while a tunnel answers: visitors through the tests' edge notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from latticed.host.call import HostError
from latticed.host.tunnel import spec as specs
from tests.house import children, edges, origins
from tests.unit.host.test_tunnel_keeper import A, rule, tree, until, world

HOST = "app.example.com"
EVERY_S = 0.1
HELLO = origins.answer(b"hello")


@contextlib.asynccontextmanager
async def published(home, *, answer=HELLO, **settings):
    """A connected tunnel to an origin that answers, with its edge and the origin's `http://…` as a rule has it."""
    async with (
        edges.serving() as edge,
        origins.serving(answer) as origin,
        world(home, edge=edge.address, **settings) as here,
    ):
        service = f"http://127.0.0.1:{origin.port}"
        here.bound.append(service)
        await here.put(rule(HOST, service))
        await here.until_state("connected")
        yield here, edge, service


@contextlib.asynccontextmanager
async def visitors(edge):
    """Ten requests a second for as long as the block runs; yields the list of their answers."""
    answers, asking = [], set()

    async def arrive():
        while True:
            one = asyncio.create_task(edge.ask(HOST))
            asking.add(one)
            one.add_done_callback(lambda done: answers.append(done.result()))
            await asyncio.sleep(EVERY_S)

    arriving = asyncio.create_task(arrive())
    try:
        yield answers
    finally:
        arriving.cancel()
        await asyncio.gather(arriving, *asking, return_exceptions=True)


def connectors():
    """The process groups of cloudflared that run now, by the command line of `run`."""
    found = set()
    for pid in children.descendants(os.getpid()):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"run" in words:
                found.add(words[words.index(b"--config") + 1])
    return found


async def kept(here):
    await until(lambda: here.one.trial is None, "the change to be over")
    await here.one.drained()


async def test_no_request_fails_while_tunnel_rules_change(tmp_path):
    """Three changes that connect, one that does not, and one that cloudflared refuses; ten visitors a second."""
    async with published(tmp_path) as (here, edge, service), visitors(edge) as answers:
        await until(lambda: len(answers) >= 5, "visitors")
        for name in ("one", "two", "three"):
            await here.put(rule(HOST, service), rule(f"{name}.example.com", service))
            await until(lambda: here.one.trial is None, f"{name} to be kept")
            assert (await here.status())["ingress"][1]["hostname"] == f"{name}.example.com"
        await kept(here)
        pid = here.one.program.pid
        here.hurry()
        await here.put(rule(HOST, service), rule("unready.example.com", service))
        await here.until_error("change_undone")
        with pytest.raises(HostError, match="bad_params"):
            await here.put(rule(HOST, service), rule("refused.example.com", service))
        assert (here.one.program.pid, len(connectors())) == (pid, 1)
        after = len(answers)
        await until(lambda: len(answers) >= after + 5, "more visitors")
        assert len(answers) > 20
        assert [one for one in answers if one != (200, "hello")] == []


async def test_rules_that_are_put_while_a_change_connects_serve_in_the_end(tmp_path, monkeypatch):
    """Put back to what serves: the change replaces that while the ledger notes that nothing is tried any more."""
    async with published(tmp_path) as (here, edge, service):
        wanted, gate = here.one.wanted, asyncio.Event()
        write, connected = here.ledger.write, edge._connected

        async def slow_edge(*streams):
            await gate.wait()
            await connected(*streams)

        async def slow_ledger(change, **more):
            if not gate.is_set():
                gate.set()
                await until(lambda: here.one.serving.spec != wanted, "the change to serve")
            return await write(change, **more)

        monkeypatch.setattr(edge, "_connected", slow_edge)
        await here.put(rule(HOST, service), rule("one.example.com", service))
        monkeypatch.setattr(here.ledger, "write", slow_ledger)
        assert (await here.put(rule(HOST, service)))["trying"]
        await kept(here)
        assert [one["hostname"] for one in (await here.status())["ingress"]] == [HOST, ""]
        row = here.row()
        assert (specs.decode(row.spec), row.candidate) == (wanted, "")


async def test_replaced_connector_finishes_its_requests_and_deletion_does_not_wait_for_them(tmp_path):
    """The slow one is answered by the connector before; a third change waits until that has ended."""
    slow, gate = asyncio.Event(), asyncio.Event()

    async def answer(seen, writer):
        if seen.path == "/slow":
            slow.set()
            await gate.wait()
        writer.write(HELLO)

    async with published(tmp_path, answer=answer) as (here, edge, service):
        waiting = asyncio.create_task(edge.ask(HOST, "/slow"))
        await slow.wait()
        await here.put(rule(HOST, service), rule("one.example.com", service))
        await until(lambda: here.one.trial is None, "the change to be kept")
        assert await edge.ask(HOST) == (200, "hello")
        assert (len(connectors()), waiting.done()) == (2, False)
        await here.put(rule(HOST, service), rule("two.example.com", service))
        assert here.one.trying is None, "begun although two run"
        gate.set()
        assert await waiting == (200, "hello")
        await kept(here)
        assert ((await here.status())["ingress"][1]["hostname"], len(connectors())) == ("two.example.com", 1)
        gate.clear()
        slow.clear()
        waiting = asyncio.create_task(edge.ask(HOST, "/slow"))
        await slow.wait()
        await here.put(rule(HOST, service))
        await until(lambda: here.one.trial is None, "the change to be kept")
        await here.call("tunnel.delete", name="main")
        assert (tree(), here.credentials(), here.file("*")) == (set(), [], None)
        assert (await waiting)[0] == edges.LOST
        gate.set()


@pytest.mark.parametrize("moment", ["trying", "leaving"])
async def test_loss_of_permission_ends_every_connector_of_a_tunnel(tmp_path, moment):
    """One that is tried, and one that was replaced and still answers; `drained` returns when they are gone."""
    slow, never = asyncio.Event(), asyncio.Event()

    async def answer(seen, _writer):
        slow.set()
        await never.wait()

    async with published(tmp_path, answer=answer) as (here, edge, service):
        waiting = asyncio.create_task(edge.ask(HOST))
        await slow.wait()
        more = "unready.example.com" if moment == "trying" else "one.example.com"
        await here.put(rule(HOST, service), rule(more, service))
        done = (lambda: len(connectors()) == 2) if moment == "trying" else (lambda: here.one.trial is None)
        await until(done, moment)
        assert len(connectors()) == 2
        here.allowed.discard(A.plugin_id)
        here.tunnels.recheck(A.plugin_id)
        await here.tunnels.drained(A.plugin_id)
        assert (tree(), here.credentials()) == (set(), [])
        assert (await waiting)[0] == edges.LOST
        await until(lambda: here.one.trial is None, "the trial to end")
        assert here.row().candidate == ""
        assert tree() == set()
        here.allowed.add(A.plugin_id)
        found = await here.until_state("connected")
        assert [one["hostname"] for one in found["ingress"]] == [HOST, *([] if moment == "trying" else [more]), ""]
        never.set()


async def test_unbound_origin_of_a_change_ends_the_trial_alone(tmp_path):
    async with published(tmp_path) as (here, _, service):
        pid = here.one.program.pid
        await here.put(rule(HOST, service), rule("unready.example.com", "http://10.0.0.6:81"))
        await until(lambda: len(connectors()) == 2, "the trial to run")
        here.bound.remove("http://10.0.0.6:81")
        here.tunnels.recheck(A.plugin_id)
        await here.tunnels.drained(A.plugin_id)
        assert len(connectors()) == 1
        await here.until_error("change_undone")
        assert ((await here.status())["state"], here.one.program.pid) == ("connected", pid)


async def test_origin_bound_to_another_address_is_not_reached_at_the_old_one(tmp_path):
    """Without a gap between the two: names are pinned to the address that is bound now."""
    async with world(tmp_path) as here:
        await here.put(rule())
        pid = (await here.until_state("connected"))["pid"]
        here.bound[0] = "http://backend.lan:8080=127.0.0.2"
        here.tunnels.recheck(A.plugin_id)
        await here.tunnels.drained(A.plugin_id)
        assert not children.alive(pid)
        await here.until_state("connected")
        assert "http://127.0.0.2:8080" in here.file("connector-*.yml").read_text()


async def test_changed_tunnel_settings_take_effect_without_a_restart(tmp_path):
    """Another cloudflared replaces the one that runs; one that cannot start does not; without one, tunnels end."""
    async with published(tmp_path) as (here, edge, _), visitors(edge) as answers:
        assert (await here.status())["version"] == "2025.11.1"
        newer = edges.install(tmp_path, edge=edge.address, version="2026.5.0", name="newer")
        before = here.tunnels.settings
        here.tunnels.settings = replace(before, program=str(newer))
        await kept(here)
        found = await here.status()
        assert (found["version"], found["state"], len(connectors())) == ("2026.5.0", "connected", 1)
        here.tunnels.settings = replace(before, program=str(tmp_path / "missing"), ready_s=1.0)
        found = await here.until_error("change_undone")
        assert (found["version"], found["state"]) == ("2026.5.0", "connected")
        assert "program_unusable" in found["last_error"]["message"]
        assert [one for one in answers if one != (200, "hello")] == []
        here.tunnels.settings = replace(before, program="")
        await here.until_state("stopped")
        assert tree() == set()
        here.tunnels.settings = before
        await here.until_state("connected")


async def test_edge_that_cannot_be_reached_is_told_and_forgotten_when_it_can(tmp_path):
    """cloudflared runs on and tries; the state says that it does, last_error why."""
    async with edges.serving() as edge:
        address = edge.address
    async with world(tmp_path, edge=address, ready_s=0.5) as here:
        await here.put(rule())
        found = await here.until_error("edge_unreachable")
        assert found["state"] == "connecting"


async def test_credentials_that_the_edge_refuses_are_not_tried_again(tmp_path):
    """cloudflared learns of it once it is connected, and ends with 255."""
    async with edges.serving() as edge, world(tmp_path, edge=edge.address) as here:
        edges.write_credentials(tmp_path / "keys/main.json", secret="QQ" * 16)
        await here.put(rule())
        found = await here.until_state("failed")
        assert found["last_error"]["code"] == "credentials_refused"
        assert (edge.registered, tree()) == (0, set())


async def test_tunnel_that_is_deleted_while_its_change_connects_stays_deleted(tmp_path):
    """The disk is slow: the row is being deleted when the trial connects and would be stored."""
    disk = threading.Event()
    async with published(tmp_path) as (here, _edge, service):
        await here.put(rule(HOST, service), rule("one.example.com", service))
        slow = asyncio.create_task(here.ledger.write(lambda _: disk.wait(60)))
        deleted = asyncio.create_task(here.call("tunnel.delete", name="main"))
        await until(lambda: here.one.trying is None, "the trial to be over")
        disk.set()
        assert (await deleted)["ok"] is True
        await slow
        await here.ledger.write(lambda _: None)
        assert (here.row(), here.tunnels.of(A.plugin_id)) == (None, [])


async def test_full_disk_refuses_a_change_and_leaves_what_runs(tmp_path, monkeypatch):
    """Neither the configuration of the validation nor that of a connector can be written."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with published(tmp_path) as (here, edge, service):
        pid = here.one.program.pid
        with monkeypatch.context() as patch:
            patch.setattr("latticed.host.tunnel.files.files.replace", full)
            with pytest.raises(HostError, match=r"service_unavailable: .*No space left"):
                await here.put(rule(HOST, service), rule("one.example.com", service))
        assert (await edge.ask(HOST), here.one.program.pid, here.row().candidate) == ((200, "hello"), pid, "")
        await here.put(rule(HOST, service), rule("one.example.com", service))
        await kept(here)
        assert (await here.status())["ingress"][1]["hostname"] == "one.example.com"
