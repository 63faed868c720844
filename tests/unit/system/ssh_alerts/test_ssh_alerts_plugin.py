"""The plugin against host calls that fail, anywhere: nothing is lost, nothing is told twice, nothing is waited for.

The host here is a simulator with the answers of the real calls; tests/systemd has the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.sdk.base import PluginError
from latticed.sdk.calls import HostError, from_base64, to_base64
from latticed.system.host import Host
from latticed.system.ssh_alerts import check, plugin
from latticed.system.ssh_alerts.plugin import SshAlerts

BEGIN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


class Crash(BaseException):
    """The process is gone."""


class Simulator:
    """node.journal, kv and notify.send. `faults`: by the number of a call, whether it is carried out before it fails,
    and with what.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.kv: dict[str, str] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.faults: dict[int, tuple[bool, BaseException]] = {}
        self.made: list[str] = []
        self.gap = False
        self.logged: list[dict[str, Any]] = []

    def say(self, *messages: str, **fields: Any) -> None:
        for message in messages:
            number = len(self.entries)
            at = (BEGIN + timedelta(seconds=number)).isoformat()
            plain = {"id": f"{number:032x}", "at": at, "message": message, "trusted": True, "dropped": 0}
            self.entries.append({**plain, "unit": "ssh.service", **fields})

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        done, fault = self.faults.pop(len(self.made), (True, None))
        self.made.append(method)
        answer = getattr(self, f"do_{method.replace('.', '_')}")(**params) if done else None
        if fault is not None:
            raise fault
        return answer

    def do_node_journal(self, filter: str, cursor: str = "", limit: int = 100) -> dict[str, Any]:  # noqa: A002
        assert filter == "sshd"
        if not cursor:
            assert limit == 0
            return {"entries": [], "cursor": f"j:{len(self.entries)}", "gap": False}
        if not cursor.startswith("j:"):
            raise HostError("bad_params", "cursor: expected one that this host gave")
        place = int(cursor[2:])
        found = self.entries[place : place + min(limit, 7)]
        gap, self.gap = self.gap, False
        return {"entries": found, "cursor": f"j:{place + len(found)}", "gap": gap}

    def do_kv_get(self, key: str) -> dict[str, Any]:
        return {"ok": key in self.kv, "value_base64": self.kv.get(key, "")}

    def do_kv_put(self, key: str, value_base64: str) -> dict[str, Any]:
        self.kv[key] = value_base64
        return {"ok": True}

    def do_notify_send(self, dedupe: str, **message: Any) -> dict[str, Any]:
        self.sent.setdefault(dedupe, message)
        return {"ok": True}

    def do_log_write(self, **line: Any) -> dict[str, Any]:
        self.logged.append(line)
        return {"ok": True}

    def titles(self, event: str = "ssh.login.new") -> list[str]:
        return [one["title"] for one in self.sent.values() if one["event"] == event]

    async def plugin(self, **config: Any) -> SshAlerts:
        made = SshAlerts(Host(self.ask), id="latticed.ssh-alerts", capabilities=(), config=config)
        await made.started()
        return made


async def rounds(found: SshAlerts, count: int = 1) -> None:
    """What `run` does, without its pauses."""
    for _ in range(count):
        with contextlib.suppress(HostError):
            await found._poll()


def accepted(user: str) -> str:
    return f"Accepted password for {user} from 203.0.113.7 port 22 ssh2"


async def test_first_start_begins_with_what_comes_after_it():
    host = Simulator()
    host.say(accepted("before"))
    found = await host.plugin()
    await rounds(found)
    host.say(accepted("after"))
    await rounds(found)
    assert [title.split()[-3] for title in host.titles()] == ["after"]
    status = await found.do_status(None)
    assert status["watching"] is True
    assert [one["user"] for one in status["logins"]] == ["after"]


async def test_round_in_which_nothing_happened_writes_nothing():
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    host.made.clear()
    await rounds(found, 5)
    assert host.made == ["node.journal"] * 5


FAULTS = st.dictionaries(
    st.integers(0, 60),
    st.tuples(
        st.booleans(),
        st.sampled_from(
            [Crash, HostError("quota_exceeded", "full"), HostError("audit_unavailable", ""), HostError("internal", "")]
        ),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(faults=FAULTS, pieces=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_each_login_is_told_once_whatever_fails_and_wherever_it_is_killed(faults, pieces):
    asyncio.run(_played(faults, pieces))


async def _played(faults: dict[int, tuple[bool, Any]], pieces: list[int]) -> None:
    host = Simulator()
    await rounds(await host.plugin())
    host.made.clear()
    host.faults = {number: (done, fault() if fault is Crash else fault) for number, (done, fault) in faults.items()}
    names: list[str] = []
    found = await host.plugin()
    for count in (*pieces, 0):
        new = [f"user{len(names) + number}" for number in range(count)]
        names += new
        for name in new:
            host.say(accepted(name), f"Failed password for {name} from 198.51.100.9 port {len(host.entries)} ssh2")
        for _ in range(80 if count == 0 else 3):
            try:
                await rounds(found)
            except Crash:
                found = await host.plugin()
    assert [title.split()[-3] for title in host.titles()] == names
    counts = (await found.do_status(None))["counts"]
    assert (counts["logins"], counts["failures"], counts["gaps"]) == (len(names), len(names), 0)


async def test_full_queue_holds_the_cursor_and_shows_in_the_health():
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    host.say(accepted("alice"))
    kept = dict(host.kv)
    host.faults = {len(host.made) + 1: (False, HostError("quota_exceeded", "the queue is full"))}
    runner = asyncio.create_task(found.run())
    try:
        for _ in range(100):
            await asyncio.sleep(0)
        assert host.kv == kept
        health = await found.check()
        assert (health.status, health.message) == ("degraded", "quota_exceeded: the queue is full")
    finally:
        runner.cancel()
    await rounds(found)
    assert len(host.titles()) == 1


async def test_notification_that_is_sent_too_fast_is_sent_again(monkeypatch):
    pauses: list[float] = []

    async def paused(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)

    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    host.say(accepted("alice"))
    host.faults = {len(host.made) + 1 + number: (False, HostError("rate_limited", "")) for number in range(3)}
    monkeypatch.setattr(plugin.asyncio, "sleep", paused)
    await found._poll()
    assert (pauses, len(host.titles())) == ([1, 1, 1], 1)


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b'{"cursor":7}', b"\xff", b'{"known":{"a":1}}'])
async def test_kept_state_that_cannot_be_read_is_told_and_begun_anew(kept):
    host = Simulator()
    host.kv["state"] = to_base64(kept)
    found = await host.plugin()
    host.faults = {1: (False, HostError("quota_exceeded", "full"))}
    await rounds(found, 3)
    assert host.titles("ssh.gap.forgotten") == ["SSH alerts begin anew"]
    assert check.state(from_base64(host.kv["state"])).cursor == "j:0"


async def test_reader_that_is_away_for_a_minute_is_told_and_its_return_too(monkeypatch):
    """Once each, also when the daemon is killed meanwhile; what was logged in the meantime comes late."""
    now_s = BEGIN.timestamp()
    monkeypatch.setattr(plugin.time, "time", lambda: now_s)
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    read = host.do_node_journal

    def away(**_: Any) -> Any:
        raise HostError("service_unavailable", "the journal reader is not running")

    host.do_node_journal = away
    host.say(accepted("alice"))
    for _ in range(30):
        now_s += 10
        await rounds(found)
        found = await host.plugin()
    (one,) = [sent for sent in host.sent.values() if sent["event"] == "ssh.gap.down"]
    assert "reason: the journal reader is not running" in one["body"]
    assert "since: 2026-03-02 09:00:10 UTC" in one["body"]
    host.do_node_journal = read
    await rounds(found, 3)
    assert (len(host.titles("ssh.gap.up")), len(host.titles()), len(host.sent)) == (1, 1, 3)


async def test_cursor_of_another_source_is_a_gap_and_begins_anew():
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    state = check.state(from_base64(host.kv["state"]))
    host.kv["state"] = to_base64(check.encoded(state).replace(b'"j:0"', b'"f:0"'))
    found = await host.plugin()
    await rounds(found, 3)
    host.say(accepted("alice"))
    await rounds(found)
    assert (len(host.titles("ssh.gap.source")), len(host.titles())) == (1, 1)


async def test_gap_of_an_answer_is_told():
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    host.gap = True
    host.say(accepted("alice"))
    await rounds(found, 2)
    assert len(host.titles("ssh.gap.gone")) == len(host.titles()) == 1


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"entries": [], "cursor": "j:1"},
        {"entries": [], "cursor": "", "gap": False},
        {"entries": [], "cursor": "x" * 2_000, "gap": False},
        {
            "entries": [{"id": "../x", "at": None, "message": "", "trusted": True, "dropped": 0}],
            "cursor": "j",
            "gap": False,
        },
        {
            "entries": [{"id": "0" * 32, "at": 1, "message": "", "trusted": True, "dropped": 0}],
            "cursor": "j",
            "gap": False,
        },
        {"entries": [{"id": "0" * 32}], "cursor": "j", "gap": False},
    ],
)
async def test_malformed_answer_of_the_reader_changes_nothing(answer):
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    kept = check.state(from_base64(host.kv["state"]))
    host.do_node_journal = lambda **_: answer
    with pytest.raises(HostError, match="cannot be read"):
        await found._poll()
    assert check.state(from_base64(host.kv["state"])).cursor == kept.cursor
    assert host.sent == {}


async def test_messages_that_cannot_be_read_are_in_the_log():
    host = Simulator()
    found = await host.plugin()
    await rounds(found)
    host.say("what is this", "and that")
    await rounds(found)
    (line,) = host.logged
    assert (line["fields"]["count"], line["fields"]["last"]) == ("2", "and that")
    assert (await found.check()).message == "0 logins, 0 failed attempts, 2 messages could not be read"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"time_zone": "Nowhere/Land"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"time_zone": "/etc/passwd"}, "time_zone"),
        ({"allow": [{"networks": ["203.0.113.7/24"]}]}, "allow[0].networks[0]"),
        ({"allow": [{}, {"hours": ["09:00-24:01"]}]}, "allow[1].hours[0]"),
        ({"allow": [{"hours": ["9-17"]}]}, "allow[0].hours[0]"),
        ({"allow": [{"user": ["x"]}]}, "user"),
        ({"poll_s": 0}, "poll_s"),
        ({"failures": {"count": 1}}, "failures.count"),
    ],
)
async def test_bad_configuration_names_its_field(config, field):
    with pytest.raises(PluginError) as caught:
        await Simulator().plugin(**config)
    assert field in str(caught.value)
