"""SSH alerts in a real daemon, with the real journald, the real reader and the real sshd."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.house import bundles, daemons, fanouts, journalds, processes, push_services, sshds
from tests.house.daemons import Daemon

pytestmark = [pytest.mark.root, pytest.mark.daemon, pytest.mark.timeout(180)]

ID = "latticed.ssh-alerts"
TRUE = "/usr/local/sbin/sshd"
PRINT = "SHA256:J2fJ3nIYpZ0yRbOTnWVc6F4n9N1oVRjVUgQ1Zr3cVxk"
READER = "reader"


class Site:
    """One daemon's place, a journald, and the journal reader beside it."""

    def __init__(self, place: daemons.Place, journal: journalds.Journal) -> None:
        self.place, self.journal = place, journal

    def read(self) -> None:
        """Start the journal reader."""
        log = self.journal.home / "reader.log"
        self.journal.run(f"{shlex.join(self.command())} >>{log} 2>&1 & {READER}=$!")
        self.journal.run(
            f"for _ in $(seq 3000); do [ -S {self.place.run}/journal.sock ] && break; sleep 0.01; done; cat {log} >&2"
        )

    def command(self, *more: str, auth_log: Path = Path("/var/log/auth.log")) -> list[str]:
        """The reader's command; it runs as root, whose settings have to be root's."""
        config = self.journal.home / "reader.toml"
        config.write_text(f'runtime_dir = "{self.place.run}"\n[node]\nauth_log = "{auth_log}"\n')
        return journalds.reader_command(config, *more)

    def kill_reader(self) -> None:
        self.journal.run(f"kill -9 ${READER}; wait ${READER}; rm -f {self.place.run}/journal.sock")

    def bodies(self, event: str) -> list[list[str]]:
        """The lines of notifications, oldest first: the API does not show them. No daemon may run."""
        with contextlib.closing(apsw.Connection(str(self.place.state / "ledger.sqlite3"))) as db:
            found = db.execute("SELECT body FROM notifications WHERE event = ? ORDER BY seq", (event,))
            return [body.splitlines() for (body,) in found]

    @contextlib.contextmanager
    def watched(self, document: dict[str, Any] | None = None) -> Iterator[Watched]:
        """A daemon that has the plugin active, which has read what there is."""
        with self.place.running() as daemon:
            found = Watched(daemon, self)
            if (daemon.plugin(ID) or {}).get("status") != "active":
                daemon.until(lambda: daemon.plugin(ID), f"{ID} to be seen")
                assert daemon.set_status("installed", ID).status == 200
                body = {"config": {"poll_s": 1, **(document or {})}}
                answer = daemon.ask("PUT", f"/api/plugins/by-id/{ID}/config", body)
                assert answer.status == 200, answer
                assert daemon.set_status("active", ID).status == 200
            daemon.until_state("armed", ID)
            yield found


class Watched:
    def __init__(self, daemon: Daemon, site: Site) -> None:
        self.daemon, self.site = daemon, site

    def status(self) -> dict[str, Any]:
        answer = self.daemon.post(f"/api/plugins/by-id/{ID}/invoke", {"action": "status", "payload": None})
        assert answer.status == 200, answer
        return dict(answer.json()["result"])

    def until_watching(self) -> None:
        self.daemon.until(lambda: self.status()["watching"], "the plugin to have a cursor")

    def told(self) -> list[dict[str, Any]]:
        """All notifications, oldest first."""
        found: list[dict[str, Any]] = self.daemon.get("/api/notifications?limit=500").json()["notifications"]
        return sorted(found, key=lambda item: item["seq"])

    def until_told(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        def there() -> list[dict[str, Any]]:
            found = [item for item in self.told() if item["event"] == event]
            return found if len(found) >= count else []

        return self.daemon.until(there, f"{count} of {event}")

    def until_counted(self, name: str, count: int) -> dict[str, Any]:
        return self.daemon.until(
            lambda: found if (found := self.status()["counts"])[name] >= count else None, f"{count} {name}"
        )

    def health(self) -> str:
        runtime = (self.daemon.plugin(ID) or {})["runtime"]
        return f"{runtime['health']}: {runtime['message']}"


@pytest.fixture
def site() -> Iterator[Site]:
    with daemons.placed() as place:
        place.builtins = ("latticed", "")
        home = place.home.parent / "journal"
        home.mkdir(mode=0o755)
        with journalds.started(home) as journal:
            found = Site(place, journal)
            found.read()
            yield found


def accepted(user: str = "alice", address: str = "203.0.113.7") -> str:
    return f"Accepted publickey for {user} from {address} port 4242 ssh2: ED25519 {PRINT}"


def test_real_login_is_told_once_with_its_fingerprint(site):
    """Failed and cut off attempts of the same client are none, names like addresses change nothing."""
    with site.watched() as found, sshds.started(site.journal, site.journal.home / "sshd") as sshd:
        found.until_watching()
        sshd.ssh("root", "203.0.113.7", key="other")
        sshd.ssh("admin", "198.51.100.9", key="other")
        sshd.ssh("x from 192.0.2.66 port 22 ssh2", "203.0.113.8", key="other")
        sshd.ssh("root", "203.0.113.7")
        sshd.ssh("root", "2001:db8:7::1")
        first, second = found.until_told("ssh.login.root", 2)
        assert first["title"] == "SSH login of root: root from 203.0.113.7"
        assert second["title"] == "SSH login of root: root from 2001:db8:7::1"
        counts = found.until_counted("failures", 2)
        # That of root is the last message of its process, which journald may be too late to look at.
        assert counts.pop("failures") in {2, 3}
        assert counts == {"logins": 2, "unread": 0, "dropped": 0, "gaps": 0}
        assert len(found.told()) == 2
        status = found.status()
        assert [(one["user"], one["network"]) for one in status["known"]] == [
            ("root", "2001:db8:7::/64"),
            ("root", "203.0.113.0/24"),
        ]
        fingerprint = sshd.fingerprint()
    for body in site.bodies("ssh.login.root"):
        assert {f"key: ED25519 {fingerprint}", "method: publickey", "user: root"} <= set(body)


def test_real_login_arrives_at_a_channel_of_each_kind_though_the_daemon_is_killed(site):
    """From sshd through journald, the reader, this plugin, the queue and the fan-out to what a person reads.

    The daemon is killed when it has accepted the notification; a name that is markup arrives as text.
    """
    with push_services.serving() as services:
        with site.watched() as found, sshds.started(site.journal, site.journal.home / "sshd") as sshd:
            fanout = fanouts.Fanout(site.place, found.daemon, services, bundles.author("nobody"))
            found.until_watching()
            sshd.ssh("root", "203.0.113.7")
            site.journal.speaker(TRUE).say(accepted("<b>&@everyone <!channel>", "198.51.100.1"))
            found.until_told("ssh.login.new")
            fanouts.activate(fanout)
            fingerprint = sshd.fingerprint()
            found.daemon.process.send_signal(signal.SIGKILL)
        with site.watched() as found:
            fanout.daemon = found.daemon
            items = [item["id"] for item in found.told() if item["event"].startswith("ssh.")]
            assert len(items) == 2
            for row in fanout.ended(*items):
                assert {(one["state"], one["reason"]) for one in row["channels"]} == {("done", "")}, row
    for name in services.channels():
        login = [one for one in services.of(name) if "root from 203.0.113.7" in one.title]
        assert login, name
        assert all(f"key: ED25519 {fingerprint}" in one.body for one in login)
        # A space of no width keeps Discord from calling everyone.
        titles = [one.title.replace("\u200b", "") for one in services.of(name)]
        assert [one for one in titles if "<b>&@everyone <!channel>" in one], (name, titles)
    # The webhook says the id of each: what is repeated because of the kill is known by it.
    assert {row["id"] for one in services.of("webhook") for row in one.plain["data"]["items"]} >= set(items)


def test_real_guesses_are_told_and_the_login_after_them_is_an_error(site):
    """Of the passwords that one client guesses, of an account that there is, and of one that there is not."""
    with site.watched() as found, sshds.started(site.journal, site.journal.home / "sshd") as sshd:
        found.until_watching()

        def guessed() -> bool:
            # Again where it was not counted: journald cannot say whose a line is once its writer has ended.
            for user in ("root", "nobody here"):
                sshd.guess(user, "203.0.113.8")
            status = found.status()
            return status["counts"]["failures"] >= 6 and len(status["failures"]["users"]) == 2

        found.daemon.until(guessed, "6 failures of both")
        sshd.ssh("root", "203.0.113.7")
        (item,) = found.until_told("ssh.login.guessed")
        assert (item["severity"], item["title"]) == (
            "error",
            "SSH login after failed attempts: root from 203.0.113.7",
        )
        status = found.status()
        assert status["counts"]["failures"] == status["failures"]["total"]
        assert status["failures"]["users"].keys() == {"root", "nobody here"}
        assert [item["event"] for item in found.told()] == ["ssh.failures.begun", "ssh.login.guessed"]
    (body,) = site.bodies("ssh.failures.begun")
    assert "from: 203.0.113.0/24 (at least 5)" in body


def test_forgers_and_copies_of_sshd_are_not_told(site):
    copy = site.journal.home / "sshd"
    site.journal.run(f"cp {TRUE} {copy}; chmod 755 {copy}")
    true = site.journal.speaker(TRUE)
    liars = [
        site.journal.speaker("logger"),
        site.journal.speaker(str(copy)),
        site.journal.speaker(TRUE, uid=65_500),
    ]
    with site.watched() as found:
        found.until_watching()
        for number, liar in enumerate(liars):
            liar.say(accepted("root", f"192.0.2.{number}"))
        for number in range(len(liars)):
            site.journal.run(f"until journalctl -q -t sshd | grep -q 192.0.2.{number}; do sleep 0.01; done")
        true.say(accepted())
        (item,) = found.until_told("ssh.login.new")
        assert item["title"].endswith("alice from 203.0.113.7")
        assert len(found.told()) == 1


@pytest.mark.slow
def test_ten_thousand_failures_in_a_minute_are_few_messages_and_the_login_among_them_is_told(site):
    """The memory of the daemon stays what it was."""
    true = site.journal.speaker(TRUE)
    with site.watched({"poll_s": 10}) as found:
        found.until_watching()
        for number in range(200):
            true.say(f"Failed password for invalid user u{number} from 198.51.100.7 port {number + 1} ssh2")
        found.until_counted("failures", 200)
        before_kib = found.daemon.memory_kib()
        for number in range(10_000):
            true.say(f"Failed password for invalid user u{number} from 198.18.{number % 250}.9 port {number + 1} ssh2")
            if number == 7_000:
                true.say(accepted())
        found.until_counted("failures", 10_200)
        (item,) = found.until_told("ssh.login.new")
        (login,) = found.status()["logins"]
        happened = datetime.strptime(login["at"], "%Y-%m-%d %H:%M:%S %Z")  # noqa: DTZ007 - both are UTC
        queued = datetime.fromisoformat(item["created_at"]).replace(tzinfo=None)
        # A round of 10 seconds, and what the storm takes to read; on a machine under load that may be longer.
        assert (queued - happened).total_seconds() < processes.PATIENCE_S
        assert len(found.told()) <= 5
        assert found.daemon.memory_kib() - before_kib < 8 << 10
        assert found.status()["failures"]["total"] == 10_200


def test_restart_rotation_and_a_killed_reader_lose_and_repeat_nothing(site):
    true = site.journal.speaker(TRUE)
    names = iter(range(100))
    said: list[str] = []

    def say(count: int = 2) -> None:
        for _ in range(count):
            said.append(f"user{next(names)}")
            true.say(accepted(said[-1]))

    def heard(found: Watched) -> list[str]:
        items = found.until_told("ssh.login.new", len(said))
        return [item["title"].split()[-3] for item in items]

    with site.watched() as found:
        found.until_watching()
        say()
        assert heard(found) == said
        site.kill_reader()
        say()
        site.read()
        assert heard(found) == said
        site.journal.run("journalctl --sync; journalctl --rotate")
        say()
        found.daemon.process.send_signal(signal.SIGKILL)
    say()
    with site.watched() as found:
        assert heard(found) == said
        say()
    say()
    with site.watched() as found:
        assert heard(found) == said
        found.daemon.until(lambda: found.status()["counts"]["logins"] == len(said), "all of them to be counted")
        assert [item["event"] for item in found.told()] == ["ssh.login.new"] * len(said)


@pytest.mark.slow
def test_daemon_killed_again_and_again_tells_each_login_once(site):
    """It dies in the middle of reading, telling and writing down."""
    true = site.journal.speaker(TRUE)
    with site.watched() as found:
        found.until_watching()
    total = 0
    for turn in range(6):
        with site.watched() as found:
            for number in range(10):
                true.say(accepted(f"user{turn}-{number}"))
            total += 10
            for number in range(300):
                true.say(f"Failed password for root from 198.51.100.{turn} port {number + 1} ssh2")
            floor = total - 10 + turn
            found.daemon.until(lambda least=floor: len(found.told()) > least, "some of it to be told")
            found.daemon.process.send_signal(signal.SIGKILL)
    with site.watched() as found:
        found.until_counted("logins", total)
        found.until_counted("failures", 1_800)
        titles = [item["title"] for item in found.told() if item["event"] == "ssh.login.new"]
        assert len(titles) == len(set(titles)) == total
        assert found.status()["counts"] == {"logins": 60, "failures": 1_800, "unread": 0, "dropped": 0, "gaps": 0}


def test_gaps_are_told(site):
    """What journald dropped, what was vacuumed before it was read, and a reader that is away for a minute."""
    site.journal.restart("RateLimitIntervalSec=1s", "RateLimitBurst=10")
    with journalds.unit("ssh.service") as group, site.watched() as found:
        found.until_watching()
        true = site.journal.speaker(TRUE, cgroup=group)
        for number in range(3_000):
            true.say(f"Failed password for root from 198.51.100.7 port {number + 1} ssh2")

        def dropped() -> bool:
            true.say("Connection closed by 198.51.100.7 port 1")
            return found.status()["counts"]["dropped"] > 0

        found.daemon.until(dropped, "journald to say so")
        found.until_told("ssh.gap.dropped")
        site.kill_reader()
        true.say(accepted("lost"))
        site.journal.run("journalctl --sync; journalctl --rotate; journalctl --vacuum-time=1us 2>/dev/null")
        found.daemon.until(lambda: found.health().startswith("degraded"), "the health to say that nobody reads")
        assert "latticed-journal" in found.health()
        site.read()
        found.until_told("ssh.gap.gone")
        true.say(accepted("bob"))
        found.until_told("ssh.login.new")
        found.daemon.until(lambda: found.health().startswith("healthy"), "the plugin to be healthy again")
        assert [item["event"] for item in found.told()].count("ssh.gap.gone") == 1


def test_reader_that_hangs_holds_up_nothing(site):
    """The plugin says so, answers, and can be stopped; what was logged meanwhile is told when it goes on."""
    true = site.journal.speaker(TRUE)
    with site.watched() as found:
        found.until_watching()
        site.journal.run(f"kill -STOP ${READER}")
        true.say(accepted("alice"))
        found.daemon.until(lambda: "did not answer in time" in found.health(), "the health to say that it hangs")
        assert found.status()["trouble"].startswith("deadline_exceeded")
        assert found.daemon.set_status("disabled", ID).status == 200
        assert found.daemon.set_status("active", ID).status == 200
        assert found.told() == []
        site.journal.run(f"kill -CONT ${READER}")
        found.until_told("ssh.login.new")
        found.daemon.until(lambda: found.health().startswith("healthy"), "the plugin to be healthy again")
        assert len(found.told()) == 1


def test_hostile_messages_are_text_in_what_is_told(site):
    true = site.journal.speaker(TRUE)
    with site.watched() as found:
        found.until_watching()
        true.say(
            b"Accepted password for \x1b[2Jroot\xe2\x80\xae from 192.0.2.1 port 22 ssh2 from 203.0.113.7 port 9 ssh2",
            "Accepted password for " + "x" * 16_000 + " from 203.0.113.7 port 9 ssh2",
            "Failed password for " + "{{title}}" * 1_800,
            "Failed password for root from 192.0.2.1 port 22 ssh2: from 203.0.113.7 port 9 ssh2 \x01 \xff",
        )
        found.until_told("ssh.login.new")
        found.until_told("ssh.gap.unread")
        assert found.until_counted("unread", 3)["logins"] == 1
    (login,), (unread,) = site.bodies("ssh.login.new"), site.bodies("ssh.gap.unread")
    assert login[:2] == ["user: \\x1b[2Jroot\\u202e from 192.0.2.1 port 22 ssh2", "address: 203.0.113.7"]
    assert any("x" * 900 in line for line in unread)


def test_auth_log_is_read_where_there_is_no_journald_and_marked_as_unverified(site):
    """By inode and offset: rotation repeats and loses nothing. Changing the source is a gap."""
    site.kill_reader()
    log = site.journal.home / "auth.log"
    log.write_text("")
    line = "2026-01-02T03:04:0{}.250000+01:00 host sshd[78]: {}\n"
    command = site.command("--source", "auth.log", auth_log=log)
    with processes.spawned(command, stdout=site.journal.home / "auth-reader.log"), site.watched() as found:
        found.until_watching()
        with log.open("a") as file:
            file.write(line.format(1, accepted("alice")))
        found.until_told("ssh.login.new")
        log.rename(log.with_name("auth.log.1"))
        log.write_text(line.format(2, accepted("bob")))
        found.until_told("ssh.login.new", 2)
        found.daemon.until(lambda: "auth.log" in found.health(), "the health to say it")
    for body in site.bodies("ssh.login.new"):
        assert "source: auth.log, into which other programs can write" in body
    site.read()
    with site.watched() as found:
        found.until_told("ssh.gap.source")
        found.until_watching()
        assert len([item for item in found.told() if item["event"] == "ssh.login.new"]) == 2


def test_rules_of_the_configuration_hold(site):
    true = site.journal.speaker(TRUE)
    document = {"allow": [{"users": ["alice"], "networks": ["203.0.113.0/24"]}], "time_zone": "Europe/Berlin"}
    with site.watched(document) as found:
        found.until_watching()
        true.say(accepted("alice"), accepted("alice", "198.51.100.1"))
        (item,) = found.until_told("ssh.login.outside")
        assert item["severity"] == "critical"
        assert item["title"] == "SSH login that no rule allows: alice from 198.51.100.1"
        assert found.status()["logins"][0]["at"].endswith((" CET", " CEST"))
        for bad, why in (
            ({"time_zone": "Nowhere/Land"}, "time_zone"),
            ({"allow": [{"networks": ["203.0.113.7/24"]}]}, "allow[0].networks[0]"),
            ({"allow": [{"hours": ["09:00-09:00"]}]}, "allow[0].hours[0]"),
        ):
            found.daemon.ask("PUT", f"/api/plugins/by-id/{ID}/config", {"config": bad})
            assert why in found.daemon.until_state("failed", ID)["runtime"]["last_error"]["message"]


def test_stopped_plugin_reads_and_tells_nothing_and_goes_on_where_it_was(site):
    true = site.journal.speaker(TRUE)
    with site.watched() as found:
        found.until_watching()
        assert found.daemon.set_status("disabled", ID).status == 200
        mark = len(found.daemon.events(action="host.call"))
        true.say(accepted("late"))
        site.journal.run("until journalctl -q | grep -q late; do sleep 0.01; done")
        assert found.told() == []
        assert len(found.daemon.events(action="host.call")) == mark
        assert found.daemon.set_status("active", ID).status == 200
        (item,) = found.until_told("ssh.login.new")
        assert "late" in item["title"]
