"""latticed-journal with the real journald: only genuine entries, none lost or repeated."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latticed.host.call import HostError
from latticed.host.node import journal_client
from latticed.model.hostcall import Denial
from tests.house import journalds, processes

UNIT = "web-under-test.service"


class Desk:
    """The daemon's side of one reader."""

    def __init__(self, found: journalds.Journal, socket: Path) -> None:
        self.journal, self.socket = found, socket
        self.cursors: list[str] = []

    async def ask(self, wanted: str = "sshd", cursor: str = "", limit: int = 100) -> dict[str, Any]:
        request = {"filter": wanted, "cursor": cursor, "limit": limit}
        return await journal_client.ask(self.socket, request, readers=lambda: frozenset({0}))

    async def collected(
        self, wanted: str, cursor: str, most: int, limit: int = 100
    ) -> tuple[list[dict[str, Any]], str]:
        """Go on asking from `cursor` until `most` entries have come, and once more."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while True:
                answer = await self.ask(wanted, cursor, limit)
                assert len(answer["entries"]) <= limit
                enough = len(found) >= most
                found, cursor = found + answer["entries"], answer["cursor"]
                if enough:
                    return found, cursor
                await asyncio.sleep(0.02)


@pytest.fixture
def desk() -> Iterator[Desk]:
    home = Path(tempfile.mkdtemp(prefix="latticed-j-", dir="/tmp"))  # socket paths are short
    try:
        home.chmod(0o755)
        config = home / "latticed.toml"
        config.write_text(f'runtime_dir = "{home}"\n[node]\njournal_units = ["{UNIT}", "latticed.service"]\n')
        with journalds.started(home) as found:
            log = home / "reader.log"
            found.run(f"{shlex.join(journalds.reader_command(config))} >{log} 2>&1 &")
            found.run(f"for _ in $(seq 1000); do [ -S {home}/journal.sock ] && break; sleep 0.01; done; cat {log}")
            yield Desk(found, home / "journal.sock")
    finally:
        shutil.rmtree(home)


async def test_only_entries_of_sshd_itself_are_shown(desk: Desk) -> None:
    """The kernel's word of the writer counts: a tag, a name or a path alone does not suffice."""
    start = (await desk.ask(limit=0))["cursor"]
    copy = desk.journal.home / "sshd"
    desk.journal.run(f"cp /usr/local/sbin/sshd {copy}; chmod 755 {copy}")
    true = desk.journal.speaker("/usr/local/sbin/sshd")
    liars = [
        desk.journal.speaker("logger"),  # only its tag says sshd
        desk.journal.speaker(str(copy)),  # named sshd, but not the installed one
        desk.journal.speaker("/usr/local/sbin/sshd", uid=65_500),  # the program, but not as root
    ]
    for number, liar in enumerate(liars):
        liar.say(f"Accepted password for root from 192.0.2.{number} port 22 ssh2")
    true.say("Accepted publickey for root from 192.0.2.9 port 22 ssh2: ED25519 SHA256:abc")
    found, _ = await desk.collected("sshd", start, 1)
    for number in range(len(liars)):  # all of them have arrived, and are in the journal
        desk.journal.run(f"until journalctl -q -t sshd | grep -q 192.0.2.{number}; do sleep 0.01; done")
    again, _ = await desk.collected("sshd", start, 1)
    assert again == found
    (entry,) = found
    assert entry["message"] == "Accepted publickey for root from 192.0.2.9 port 22 ssh2: ED25519 SHA256:abc"
    assert (entry["comm"], entry["uid"], entry["priority"], entry["trusted"]) == ("sshd", 0, 6, True)
    for speaker in (true, *liars):
        speaker.close()


async def test_every_entry_is_read_exactly_once(desk: Desk) -> None:
    """It is read in pages, from any cursor, with entries of others between, and while more is written."""
    start = (await desk.ask(limit=0))["cursor"]
    true, other = desk.journal.speaker("/usr/local/sbin/sshd"), desk.journal.speaker("logger", tag="noise")
    for number in range(60):
        other.say(f"noise {number}")
        true.say(f"line {number}")
        other.say(f"more noise {number}")
    found, cursor = await desk.collected("sshd", start, 60, limit=7)
    assert [entry["message"] for entry in found] == [f"line {number}" for number in range(60)]
    assert [entry["at"] for entry in found] == sorted(entry["at"] for entry in found)
    true.say("one more")
    more, _ = await desk.collected("sshd", cursor, 1)
    assert [entry["message"] for entry in more] == ["one more"]
    newest = await desk.ask(limit=3)
    assert [entry["message"] for entry in newest["entries"]] == ["line 58", "line 59", "one more"]
    after = await desk.ask(cursor=newest["cursor"])
    assert (after["entries"], after["gap"]) == ([], False)
    assert len({entry["id"] for entry in found}) == 60
    assert [entry["id"] for entry in newest["entries"][:2]] == [entry["id"] for entry in found[-2:]]
    desk.journal.run("journalctl --rotate; journalctl --sync")
    true.say("after rotation")
    rotated, _ = await desk.collected("sshd", newest["cursor"], 1)
    assert [entry["message"] for entry in rotated] == ["after rotation"]
    true.close()
    other.close()


async def test_empty_journal_gives_a_cursor(desk: Desk) -> None:
    """Later entries are found from it, although the filter has matched none before."""
    start = await desk.ask()
    assert start["entries"] == []
    true = desk.journal.speaker("/usr/local/sbin/sshd")
    true.say("the first")
    found, _ = await desk.collected("sshd", start["cursor"], 1)
    assert [entry["message"] for entry in found] == ["the first"]
    assert (await desk.ask(cursor="t:0"))["entries"] == found  # what a host without any entry gives
    assert (await desk.ask(cursor=f"t:{2**62}"))["entries"] == []
    true.close()


async def test_journal_lines_are_escaped_and_cut(desk: Desk) -> None:
    """Others can make sshd log any text; a line has at most 16 KiB."""
    start = (await desk.ask(limit=0))["cursor"]
    true = desk.journal.speaker("/usr/local/sbin/sshd")
    true.say(b"Invalid user \x1b[2J\xff\xe2\x80\xae from 192.0.2.1", "x" * 40_000)
    found, _ = await desk.collected("sshd", start, 2)
    assert found[0]["message"] == "Invalid user \\x1b[2J\ufffd\\u202e from 192.0.2.1"
    assert len(found[1]["message"]) == 16 << 10
    true.close()


@pytest.mark.root
async def test_only_entries_of_listed_units_are_shown(desk: Desk) -> None:
    """The control group in the journal counts. The daemon's own units are never shown, even if listed."""
    with journalds.unit(UNIT) as group, journalds.unit("other-under-test.service") as other:
        start = (await desk.ask(UNIT, limit=0))["cursor"]
        speakers = [
            desk.journal.speaker("logger", tag=tag, cgroup=where) for tag, where in (("web", group), ("other", other))
        ]
        speakers[1].say("not for you")
        speakers[0].say("served a page")
        found, _ = await desk.collected(UNIT, start, 1)
        assert [(entry["unit"], entry["message"]) for entry in found] == [(UNIT, "served a page")]
        for speaker in speakers:
            speaker.close()
        for wanted in ("other-under-test.service", "latticed.service", "-f", "sshd.service"):
            with pytest.raises(HostError) as caught:
                await desk.ask(wanted)
            assert caught.value.code is Denial.BAD_PARAMS


async def test_vacuumed_cursor_gives_a_gap_once(desk: Desk) -> None:
    """Its entry is gone, and perhaps others that were never read; what is left is read, each entry once."""
    start = (await desk.ask(limit=0))["cursor"]
    true, other = desk.journal.speaker("/usr/local/sbin/sshd"), desk.journal.speaker("logger", tag="noise")
    true.say("one")
    _, cursor = await desk.collected("sshd", start, 1)
    vacuum = "journalctl --sync; journalctl --rotate; journalctl --vacuum-time=1us 2>/dev/null"
    desk.journal.run(vacuum)
    # Nothing of sshd's is left; the next question finds no gap any more.
    answer = await desk.ask(cursor=cursor)
    assert (answer["entries"], answer["gap"]) == ([], True)
    again = await desk.ask(cursor=answer["cursor"])
    assert (again["entries"], again["gap"], again["cursor"]) == ([], False, answer["cursor"])
    other.say("noise")
    true.say("two")
    found, cursor = await desk.collected("sshd", answer["cursor"], 1)
    assert [entry["message"] for entry in found] == ["two"]
    true.say("lost", "lost too")
    await desk.collected("sshd", cursor, 2)
    desk.journal.run(vacuum)
    true.say("three")
    await desk.collected("sshd", answer["cursor"], 1)
    answer = await desk.ask(cursor=cursor)
    assert ([entry["message"] for entry in answer["entries"]], answer["gap"]) == (["three"], True)
    assert not (await desk.ask(cursor=answer["cursor"]))["gap"]


async def test_vacuumed_cursor_is_no_gap_where_everything_since_was_read(desk: Desk) -> None:
    """A quiet sshd's last entry is removed some day; what was logged since the last reading is still there."""
    start = (await desk.ask(limit=0))["cursor"]
    true = desk.journal.speaker("/usr/local/sbin/sshd")
    true.say("one")
    _, cursor = await desk.collected("sshd", start, 1)
    desk.journal.run("journalctl --sync; journalctl --rotate; journalctl --vacuum-time=1us 2>/dev/null")
    read_us = time.time_ns() // 1_000
    answer = await desk.ask(cursor=f"{cursor}@{read_us}")
    assert (answer["entries"], answer["gap"]) == ([], False)
    true.say("two")
    found, _ = await desk.collected("sshd", answer["cursor"], 1)
    assert [entry["message"] for entry in found] == ["two"]
    answer = await desk.ask(cursor=f"{cursor}@{read_us}")
    assert ([entry["message"] for entry in answer["entries"]], answer["gap"]) == (["two"], False)
    assert (await desk.ask(cursor=cursor))["gap"]


async def test_cursor_that_nothing_comes_after_tells_when_it_was_asked_with(desk: Desk) -> None:
    """Once an hour, so that whoever keeps it need not write it down each time."""
    start = (await desk.ask(limit=0))["cursor"]
    assert (await desk.ask(cursor=start))["cursor"] == start
    true = desk.journal.speaker("/usr/local/sbin/sshd")
    true.say("one")
    _, cursor = await desk.collected("sshd", start, 1)
    assert (await desk.ask(cursor=cursor))["cursor"] == cursor
    # An entry of hours ago: the number of it is what finds it.
    head, at, tail = re.split(r"(?<=;t=)([0-9a-f]+)", cursor)
    old = f"{head}{int(at, 16) - 7_200_000_000:x}{tail}"
    answer = await desk.ask(cursor=old)
    assert answer["entries"] == []
    assert re.fullmatch(re.escape(old) + r"@\d{16}", answer["cursor"])
    assert (await desk.ask(cursor=answer["cursor"]))["cursor"] == answer["cursor"]


@pytest.mark.root
async def test_messages_that_journald_dropped_are_an_entry_of_its_own(desk: Desk) -> None:
    """Only those of the unit that was asked for; no program can write such an entry."""
    desk.journal.restart("RateLimitIntervalSec=1s", "RateLimitBurst=10")
    with journalds.unit("ssh.service") as group, journalds.unit(UNIT) as other:
        start = (await desk.ask(limit=0))["cursor"]
        true = desk.journal.speaker("/usr/local/sbin/sshd", cgroup=group)
        web = desk.journal.speaker("logger", tag="web", cgroup=other)
        forger = desk.journal.speaker("logger", tag="systemd-journald")
        forger.say("Suppressed 77 messages from ssh.service")
        for number in range(3_000):
            true.say(f"line {number}")
            web.say(f"page {number}")
        found: list[dict[str, Any]] = []
        cursor = start

        def accounted() -> int:
            return sum(entry["dropped"] or entry["message"].startswith("line ") for entry in found)

        async with asyncio.timeout(processes.PATIENCE_S):
            while accounted() < 3_000:
                true.say("more")
                await asyncio.sleep(0.1)
                answer = await desk.ask(cursor=cursor)
                found, cursor = found + answer["entries"], answer["cursor"]
        notes = [entry for entry in found if entry["dropped"]]
        assert {(note["unit"], note["comm"], note["uid"]) for note in notes} == {("ssh.service", "systemd-journal", 0)}
        lines = [entry for entry in found if entry["message"].startswith("line ")]
        assert len(lines) < 3_000
        assert all(entry["dropped"] == 0 for entry in lines)
        assert not answer["gap"]
        for speaker in (true, web, forger):
            speaker.close()


async def test_missing_or_forbidden_journal_is_an_error_and_not_an_empty_answer(desk: Desk) -> None:
    """Nobody would notice that nothing is watched."""
    desk.journal.run("rm -r /run/log/journal/*")
    with pytest.raises(HostError) as caught:
        await desk.ask()
    assert caught.value.code is Denial.SERVICE_UNAVAILABLE
    assert "Storage=" in caught.value.reason


async def test_malformed_cursors_are_refused(desk: Desk) -> None:
    """They would reach journalctl's command line."""
    start = (await desk.ask(limit=0))["cursor"]
    for cursor in (
        "--help",
        "j:--help",
        "n:--help",
        "n:",
        f"{start}@x",
        f"{start}@-1",
        "j:s=1;i=1",
        "f:1-1-1-0123456789abcdef",
        "t:x",
        "j:",
        "x",
    ):
        with pytest.raises(HostError) as caught:
            await desk.ask(cursor=cursor)
        assert caught.value.code is Denial.BAD_PARAMS
    assert os.getuid() == 0
