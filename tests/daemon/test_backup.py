"""`latticectl backup` and `latticed --restore`: complete or not at all, and never looser than what it replaces."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shlex
import stat
import subprocess
import sys
import tarfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.ledger import migrations
from latticed.lifecycle import archive
from tests.house import bundles, daemons, damage, older_ledgers, processes, used_states

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def acme():
    return bundles.author("acme")


@pytest.fixture(scope="module")
def past(acme, tmp_path_factory):
    """The place of a daemon that has run, with decisions recorded, and its backup `backup.tar`, made by latticectl."""
    with used_states.used(acme) as place:
        with place.running() as daemon:
            daemon.until_state("armed")
            ran = daemon.ctl("backup", str(place.home / "backup.tar"), "--format", "json")
            assert (ran.returncode, ran.stderr) == (0, ""), ran
            said = json.loads(ran.stdout)
            assert said["not_in_it"] == ["trust policy", "key of secrets", "settings"]
            data = (place.home / "backup.tar").read_bytes()
            assert (said["bytes"], said["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            assert daemon.stop() == 0
        yield place


@pytest.fixture
def backup(past, place):
    """The backup, where the daemon's user may read it."""
    path = place.home / "backup.tar"
    path.write_bytes((past.home / "backup.tar").read_bytes())
    return place.own(path)


@pytest.fixture
def used(place, past):
    return used_states.copy(past, place)


def refused(place, path, *more):
    """The code of the Problem of a restore that fails and must change nothing."""
    before = {one.name for one in place.state.iterdir()} - {"lock"}
    ran = place.once("--restore", str(path), *more)
    assert ran.returncode != 0, ran
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert {one.name for one in place.state.iterdir()} - {"lock"} == before
    return ran.stderr.split(": ")[1]


def test_backup_is_a_plain_tar_readable_by_its_owner_only(past):
    """Mode 0600, regular files, hashed in a manifest; no temporary file is left beside it or in the state."""
    path = past.home / "backup.tar"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert all(member.isreg() and member.mode == 0o600 for member in tar.getmembers())
        manifest = json.load(tar.extractfile("manifest.json"))
        for name, size, sha256 in manifest["files"]:
            data = tar.extractfile(name).read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    assert names[:4] == ["manifest.json", "ledger.sqlite3", "floors.json", "host.key"]
    assert len(names) == 6  # the pair in use; the forgotten plugin's is not
    assert [one.name for one in past.home.iterdir() if one.name.startswith(".")] == []
    assert [one.name for one in past.state.iterdir() if one.name.startswith(".")] == []


def test_restore_into_an_empty_state_restores_everything(place, backup, past, acme):
    """Records, grants, values, chain, key and stored pairs."""
    used_states.copy(past, place)
    for one in place.state.iterdir():
        one.rename(place.home / f"old-{one.name}")
    ran = place.once("--restore", str(backup))
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    with place.running() as daemon:
        record = daemon.until_state("armed")
        assert (record["status"], record["granted"]) == ("active", ["kv:read", "log:write", "network:plan"])
        assert daemon.get("/api/kv/default/motd").body == b"hello"
        last = daemon.events(action="ledger.restored")[-1]["detail"]
        assert last["sha256"] == hashlib.sha256(backup.read_bytes()).hexdigest()
        assert last["stricter"] == 0
        assert daemon.get("/api/audit/verify").json()["ok"] is True
        # Who has followed the record that was there before goes on with what is new to him.
        told = [
            json.loads(line) for line in daemon.ctl("events", "--after", "5000", "--format", "json").stdout.splitlines()
        ]
        assert told[0]["action"] == "ledger.restored"
        assert [one["seq"] for one in told] == [one["seq"] for one in daemon.events(after=str(told[0]["seq"] - 1))]
        assert daemon.stop() == 0


def test_restore_on_empty_machine_reports_what_is_missing_and_then_runs(place, backup, past):
    """It has no bundle, no policy, no key and other paths; once policy and key are there, the plugin runs."""
    place.trust.unlink(missing_ok=True)
    ran = place.once("--restore", str(backup))
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert f"bundles put into {place.state}/bundles: acme.demo\n" in ran.stdout
    assert "what was there before" not in ran.stdout
    assert f"missing: the trust policy: expected a trust policy at {place.trust}" in ran.stdout
    key = place.home / "secrets.key"
    assert f"missing: the key of 1 secrets: expected it at {key}" in ran.stdout
    place.write(place.trust, past.trust.read_bytes())
    place.write(key, (past.home / "secrets.key").read_bytes())
    key.chmod(0o600)
    with place.running() as daemon:
        record = daemon.until_state("armed")
        assert (record["status"], record["available"], record["version"]) == ("active", True, "1.2.0")
        assert daemon.get("/api/kv/plugin:acme.demo/own").body == b"mine"
        (secret,) = daemon.get("/api/secrets").json()["secrets"]
        assert (secret["plugins"], secret["usable"]) == (["acme.demo"], True)
        assert daemon.rejected() == {}
        assert daemon.stop() == 0
    assert list(place.plugins.iterdir()) == []
    again = place.once("--restore", str(backup))
    assert again.returncode == 0, again
    assert "bundles put" not in again.stdout, "its bundle is there now"
    assert "missing" not in again.stdout
    place.write(key, b"x" * 32)
    key.chmod(0o600)
    place.trust_us()
    third = place.once("--restore", str(backup))
    assert f"missing: the key of 1 secrets: {key} is another one" in third.stdout
    assert "missing: acme.demo does not verify here: publisher_untrusted" in third.stdout


def test_restore_keeps_stricter_later_decisions(used, backup, acme):
    """A plugin is trimmed, upgraded and revoked after the backup: masks, floors and revocations are the stricter of the
    two.
    """
    with used.running() as daemon:
        daemon.until_state("armed")
        assert daemon.ask("PUT", "/api/plugins/by-id/acme.demo/grants", {"trim": ["network:plan"]}).status == 200
        used.drop("demo", author=acme, version="2.0.0", capabilities=used_states.CAPABILITIES)
        daemon.until(lambda: "candidate" in daemon.plugin(), "the candidate")
        assert daemon.post("/api/plugins/by-id/acme.demo/upgrade").status == 200
        revoked = {**used_states.REVOKED, "plugins": ["acme.bad@*", "acme.worse@*"]}
        used.trust_us(acme, revoked=revoked)
        daemon.until(lambda: "acme.worse@*" in daemon.get("/api/trust").json()["revoked"]["plugins"], "the revocation")
        assert daemon.stop() == 0
    used.trust_us(acme)
    used.drop("demo", author=acme, version="1.2.0", capabilities=used_states.CAPABILITIES)
    ran = used.once("--restore", str(backup))
    assert ran.returncode == 0, ran
    assert "came back stricter than the backup has them: acme.demo\n" in ran.stdout
    with used.running() as daemon:
        record = daemon.plugin()
        assert (record["status"], record["version"]) == ("verified", "1.2.0")
        assert record["granted"] == ["kv:read", "log:write"]
        refused_downgrade = daemon.set_status("installed")
        assert refused_downgrade.json()["code"] == "version_downgrade"
        assert "acme.worse@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]
        assert daemon.get("/api/audit/verify").json()["ok"] is True
    replaced = next(used.state.glob("replaced-*"))
    assert {"ledger.sqlite3", "host.key", "floors.json", "store"} <= {one.name for one in replaced.iterdir()}


@pytest.mark.parametrize("step", ["_PERMITS", "_CALLS", "_TERMS", "_UNASKED"])
def test_backup_made_before_an_upgrade_is_restored(used, backup, tmp_path, step):
    """Its ledger is sound, and lacks what came since; what was taken away later holds for it as well."""
    database = tmp_path / "ledger.sqlite3"

    def older(data):
        database.write_bytes(data)
        older_ledgers.rewrite(database, migrations.MIGRATIONS.index(getattr(migrations, step)))
        return database.read_bytes()

    signed_anew(backup, "ledger.sqlite3", older)
    with used.running() as daemon:
        daemon.until_state("armed")
        assert daemon.ask("PUT", "/api/plugins/by-id/acme.demo/grants", {"trim": ["network:plan"]}).status == 200
        assert daemon.stop() == 0
    ran = used.once("--restore", str(backup))
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    with used.running() as daemon:
        assert daemon.until_state("armed")["granted"] == ["kv:read", "log:write"]
        assert daemon.get("/api/kv/default/motd").body == b"hello"
        assert daemon.get("/api/audit/verify").json()["ok"] is True


def test_restore_replaces_a_damaged_ledger(used, backup):
    """It brings back what --recover cannot rebuild."""
    damage.header(used.state)
    assert used.once("--restore", str(backup)).returncode == 0
    with used.running() as daemon:
        assert daemon.until_state("armed")["status"] == "active"
        assert daemon.get("/api/kv/default/motd").body == b"hello"


def test_restore_under_a_running_daemon_is_refused(used, backup):
    with used.running() as daemon:
        ran = used.once("--restore", str(backup))
        assert ran.stderr.split(": ")[1] == "state_in_use"
        # The daemon writes files of its own meanwhile.
        assert not [one for one in used.state.iterdir() if one.name.startswith(("replaced-", ".restoring-"))]
        assert daemon.plugin()["status"] == "active"


def test_restore_of_another_hosts_backup_needs_its_public_key(place, backup):
    """This holds where the state directory has a host key already."""
    with place.running() as daemon:
        daemon.stop()
    assert refused(place, backup) == "backup_foreign"
    with tarfile.open(backup) as tar:
        key = json.load(tar.extractfile("manifest.json"))["public_key"]
    assert refused(place, backup, "--public-key", key[::-1]) == "backup_foreign"
    assert place.once("--restore", str(backup), "--public-key", key).returncode == 0
    with place.running() as daemon:
        assert daemon.get("/api/status").json()["public_key"] == key


def test_restore_without_floors_needs_the_option(used, backup):
    (used.state / "floors.json").unlink()
    assert refused(used, backup) == "floors_invalid"
    assert used.once("--restore", str(backup), "--without-floors").returncode == 0


def rewritten(path, change):
    """The archive with its members passed through `change(name, data) -> [(TarInfo, data)]`."""
    out = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for member in old.getmembers():
            for info, data in change(member.name, old.extractfile(member).read()):
                new.addfile(info, io.BytesIO(data))
    path.write_bytes(out.getvalue())


def named(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def edit(wanted, change):
    """Every member as it is, but for one."""
    return lambda name, data: change(name, data) if name == wanted else [named(name, data)]


FORGERIES = {
    "a byte of the ledger": edit("ledger.sqlite3", lambda n, d: [named(n, d[:5000] + b"!" + d[5001:])]),
    "another size": edit("floors.json", lambda n, d: [named(n, d + b" ")]),
    "a file too many": edit("host.key", lambda n, d: [named(n, d), named("extra", b"x")]),
    "a file too few": edit("host.key", lambda n, d: []),
    "a path out of it": edit("host.key", lambda n, d: [named("../host.key", d)]),
    "an absolute path": edit("host.key", lambda n, d: [named("/etc/passwd", d)]),
    "a link": edit("host.key", lambda n, d: [named(n, b"", type=tarfile.SYMTYPE, linkname="/etc/shadow")]),
    "no manifest first": lambda n, d: [] if n == "manifest.json" else [named(n, d)],
    "an edited manifest": edit("manifest.json", lambda n, d: [named(n, d.replace(b'"version":"', b'"version":"9'))]),
    "a manifest that is no JSON": edit("manifest.json", lambda n, d: [named(n, b"{" * 9)]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_backup_is_refused(place, backup, forgery):
    """The code is `backup_invalid`, and the state is unchanged."""
    rewritten(backup, FORGERIES[forgery])
    assert refused(place, backup) == "backup_invalid"


FAULTS_THAT_WERE_SIGNED = {
    "a key that is too short": ("host.key", lambda data: data[:31]),
    "a key that is too long": ("host.key", lambda data: data + b"!"),
    "an empty key": ("host.key", lambda data: b""),
    "another key": ("host.key", lambda data: bytes(32)),
    "floors that nobody signed": ("floors.json", lambda data: data.replace(b'"signature":"', b'"signature":"A')),
    "edited floors": ("floors.json", lambda data: data.replace(b"1.2.0", b"0.2.0")),
    "floors that are no JSON": ("floors.json", lambda data: b"{"),
    "empty floors": ("floors.json", lambda data: b""),
    "a ledger that is none": ("ledger.sqlite3", lambda data: b"SQLite format 3\0" + bytes(4080)),
    "an empty ledger": ("ledger.sqlite3", lambda data: b""),
}


def signed_anew(backup, name, change):
    """The backup with one file passed through `change`, as its own host would have signed it."""
    with tarfile.open(backup) as old:
        parts = {member.name: old.extractfile(member).read() for member in old.getmembers()}
    manifest = archive.decode_manifest(parts.pop("manifest.json"))
    key = Ed25519PrivateKey.from_private_bytes(parts["host.key"])
    parts[name] = change(parts[name])
    entries = [
        archive.ArchiveEntry(name=one, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for one, data in parts.items()
    ]
    signed = archive.encode_manifest(dataclasses.replace(manifest, entries=tuple(entries)), key)
    with tarfile.open(backup, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for one, data in {"manifest.json": signed, **parts}.items():
            new.addfile(named(one, data)[0], io.BytesIO(data))


@pytest.mark.parametrize("fault", FAULTS_THAT_WERE_SIGNED)
def test_signed_but_invalid_backup_is_backup_invalid(used, backup, fault):
    """Exit 1 and no hint at --recover: the present state is intact."""
    signed_anew(backup, *FAULTS_THAT_WERE_SIGNED[fault])
    before = {one.name for one in used.state.iterdir()}
    ran = used.once("--restore", str(backup))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("latticed: backup_invalid: this is not a backup that can be restored: "), ran.stderr
    assert "recover" not in ran.stderr
    assert {one.name for one in used.state.iterdir()} == before


@pytest.mark.parametrize("keep", [0, 100, 512, 3000, -1024, -512, -1])
def test_truncated_backup_is_refused(place, backup, keep):
    backup.write_bytes(backup.read_bytes()[:keep])
    assert refused(place, backup) == "backup_invalid"


def test_backup_with_trailing_data_is_refused(place, backup):
    backup.write_bytes(backup.read_bytes() + b"x")
    assert refused(place, backup) == "backup_invalid"


def test_failed_backup_replaces_and_leaves_no_file(past, place):
    """It fails for an existing name, a missing directory, or without a daemon."""
    used_states.copy(past, place)
    taken = place.home / "taken.tar"
    taken.write_text("precious")
    with place.running() as daemon:
        assert daemon.ctl("backup", str(taken)).returncode == 1
        assert daemon.ctl("backup", str(place.home / "none" / "b.tar")).returncode == 1
        daemon.stop()
        assert daemon.ctl("backup", str(place.home / "late.tar")).returncode == 7
    assert taken.read_text() == "precious"
    assert {one.name for one in place.home.glob("*.tar*")} == {"taken.tar"}
    assert list(place.home.glob(".*tar*")) == []


def test_backup_writes_stdout_and_restore_reads_stdin(past, place):
    """Both can then be piped through an encryption program."""
    used_states.copy(past, place)
    command = [sys.executable, "-P", "-m", "latticed.ctl.main", "--socket", str(place.socket), "backup", "-"]
    with place.running() as daemon:
        ran = subprocess.run(command, env=place.environment(), capture_output=True, check=False)
        daemon.stop()
    assert (ran.returncode, ran.stderr) == (0, b"")
    piped = place.home / "piped"
    piped.write_bytes(ran.stdout)
    place.own(piped)
    shell = shlex.join(place.command("--restore", "-"))
    restored = place.ran(["sh", "-c", f"cat {piped} | {shell}"])
    assert (restored.returncode, restored.stderr) == (0, "")


def test_backup_needs_every_scope_and_is_audited(acme):
    """It holds the private key: a user who lacks one scope gets 403; the event names who got it."""
    other = processes.User(uid=65501, gid=65501)
    if os.getuid() != 0:
        pytest.skip("asks as another uid")
    scopes = f'[access.users]\n{other.uid} = ["operate", "host"]\n[access]\nsocket_group = "{processes.STRANGER.gid}"'
    with daemons.placed(settings=scopes) as place:
        place.trust_us(acme)
        with place.running() as daemon:
            place.socket.chmod(0o666)
            place.home.chmod(0o711)
            place.run.chmod(0o711)
            answer = daemon.get("/api/backup", user=other)
            assert (answer.status, answer.json()["code"]) == (403, "access_denied")
            assert daemon.get("/api/backup").status == 200
            allowed = daemon.events(action="ledger.backup")
            assert [one["actor"].split()[0] for one in allowed] == ["uid:0"]


def test_full_disk_leaves_no_partial_backup(past, place):
    """A limit on file size (EFBIG) stands for a full disk."""
    target = place.home / "half.tar"
    with past.running() as daemon:
        words = ["-m", "latticed.ctl.main", "--socket", str(past.socket), "backup", str(target)]
        ran = place.ran(["prlimit", "--fsize=4096", *place.python(), *words])
        assert daemon.stop() == 0
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: ")
    assert not list(place.home.glob("*half*"))


def test_full_disk_during_restore_leaves_the_old_state(used, backup, acme):
    """One line, exit 1, and the daemon starts as before; with free space the restore succeeds."""
    ran = used.ran(["prlimit", "--fsize=4096", *used.command("--restore", str(backup))])
    assert ran.returncode != 0
    assert ran.stderr.count("\n") == 1, ran.stderr
    with used.running() as daemon:
        daemon.until_state("armed")
        assert daemon.get("/api/audit/verify").json()["ok"]
        assert daemon.stop() == 0
    assert used.once("--restore", str(backup)).returncode == 0
