from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from latticed.ctl import policy_preview
from tests.house import bundles

ACME = bundles.author("acme", seed=b"\1" * 32).public
OTHER = bundles.author("acme", seed=b"\2" * 32).public


@pytest.fixture
def trust(ctl, tmp_path):
    """Run `trust` on a file that does not exist yet; returns what the file then says."""
    path = tmp_path / "etc/trust.json"

    def run(*words: str, code: int = 0) -> dict[str, object]:
        ran = ctl("trust", *words, "--trust", str(path))
        assert ran.code == code, ran.err
        return json.loads(path.read_bytes()) if path.exists() else {}

    run.path = path  # type: ignore[attr-defined]
    return run


def test_trust_adds_narrows_and_removes_publishers(trust, ctl):
    assert trust("add", "acme", ACME)["trusted_publishers"] == {"acme": ACME}
    assert trust.path.stat().st_mode & 0o777 == 0o644
    assert trust("add", "acme", OTHER)["trusted_publishers"] == {"acme": [ACME, OTHER]}
    narrowed = {"keys": [ACME, OTHER], "ids": ["acme.*"], "max_risk": "write"}
    assert trust("add", "acme", ACME, "--ids", "acme.*", "--max-risk", "write")["trusted_publishers"] == {
        "acme": narrowed
    }
    before = trust.path.stat().st_ino
    assert "already trusted: acme" in ctl("trust", "add", "acme", f" {ACME} ", "--trust", str(trust.path)).out
    assert trust.path.stat().st_ino == before
    assert trust("remove", "acme", "--key", OTHER)["trusted_publishers"] == {"acme": {**narrowed, "keys": [ACME]}}
    trust("remove", "acme", "--key", OTHER, code=4)
    trust("remove", "acme", "--key", ACME, code=1)
    assert trust("remove", "acme")["trusted_publishers"] == {}
    trust("remove", "acme", code=4)


@pytest.mark.parametrize(
    ("bounds", "fields"),
    [
        (("--ids", "acme.other", "--ids", "acme.x.*"), {}),
        (("--max-risk", "read"), {"capabilities": ["kv:read", "kv:write"]}),
    ],
)
def test_what_the_policy_bounds_verifies_after_the_command_that_is_told(trust, ctl, tmp_path, bounds, fields):
    author = bundles.author("acme")
    trust("add", "acme", author.public, *bounds)
    bundle = bundles.drop(tmp_path, author=author, v2=True, **fields).path
    told = ctl("verify", str(bundle), "--trust", str(trust.path))
    assert told.code != 0
    (command,) = re.findall(r"latticectl (trust add [^\n]*)", told.out + told.err)
    trust(*shlex.split(command)[1:])
    assert ctl("verify", str(bundle), "--trust", str(trust.path)).code == 0


def test_adding_with_less_says_beforehand_which_plugins_stop_and_can_be_tried(trust, ctl, monkeypatch):
    trust("add", "acme", ACME)
    asked = []
    monkeypatch.setattr(policy_preview, "show", lambda *given: asked.append(given) or [])
    before = trust.path.read_bytes()
    ran = ctl("trust", "add", "acme", ACME, "--ids", "acme.x", "--dry-run", "--trust", str(trust.path))
    assert (ran.code, ran.out, trust.path.read_bytes()) == (0, "would be trusted: acme\n", before)
    trust("add", "acme", ACME, "--max-risk", "read")
    assert len(asked) == 2
    trust("add", "acme", OTHER)
    assert len(asked) == 2


def test_trust_revoke_adds_revocations(trust):
    found = trust("revoke", "--key", ACME, "--digest", "AB" * 32, "--plugin", "acme.demo@1.0.0", "--plugin", "acme.x@*")
    assert found["revoked"] == {"keys": [ACME], "digests": ["ab" * 32], "plugins": ["acme.demo@1.0.0", "acme.x@*"]}
    assert trust("revoke", "--key", ACME) == found
    trust("revoke", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ("add", "acme", "AAAA"),
        ("add", "acme", "A" * 43 + "="),
        ("add", "latticed", ACME),
        ("add", "A", ACME),
        ("add", "acme", ACME, "--max-risk", "all"),
        ("revoke", "--digest", "ab"),
        ("revoke", "--plugin", "acme.demo"),
        ("revoke", "--key", "?"),
    ],
)
def test_invalid_policy_edit_is_not_written(trust, words):
    assert trust(*words, code=2) == {}


def test_invalid_id_pattern_is_not_written_to_the_policy(trust):
    assert trust("add", "acme", ACME, "--ids", "acme.*.x", code=2) == {}


def test_invalid_policy_file_is_an_error_and_unchanged(trust):
    trust.path.parent.mkdir()
    trust.path.write_bytes(b'{"x": 1}')
    assert trust("add", "acme", ACME, code=2) == {"x": 1}


def test_policy_that_would_be_too_large_to_be_read_is_not_written(trust, ctl):
    """What was revoked before stays so; it can still be read and edited."""
    revoked = [f"{number:064x}" for number in range(14_000)]
    trust.path.parent.mkdir()
    trust.path.write_text(json.dumps({"trusted_publishers": {"acme": ACME}, "revoked": {"digests": revoked}}))
    assert len(trust("revoke", "--digest", "ab" * 32)["revoked"]["digests"]) == 14_001
    before = trust.path.read_bytes()
    more = [f"--digest={number:064x}" for number in range(14_000, 14_200)]
    ran = ctl("trust", "revoke", *more, "--trust", str(trust.path))
    assert (ran.code, trust.path.read_bytes()) == (1, before)
    assert "expected a trust policy of at most 1048576 bytes, found" in ran.err
    assert trust("revoke", "--plugin", "acme.demo@*")["revoked"]["plugins"] == ["acme.demo@*"]


def test_linked_policy_file_stays_a_link(trust, tmp_path):
    trust.path.parent.mkdir()
    (tmp_path / "real.json").write_bytes(b"{}")
    trust.path.symlink_to(tmp_path / "real.json")
    trust("add", "acme", ACME)
    assert trust.path.is_symlink()
    assert b"acme" in (tmp_path / "real.json").read_bytes()


def test_concurrent_policy_edits_are_all_kept(tmp_path):
    """Eight processes add a publisher each to one file."""
    path = tmp_path / "trust.json"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "latticed.ctl.main", "trust", "add", "--trust", str(path)]
    children = [
        subprocess.Popen([*command, f"acme{number}", ACME], env=environ, stdout=subprocess.DEVNULL)
        for number in range(8)
    ]
    assert [child.wait(timeout=50) for child in children] == [0] * 8
    assert len(json.loads(path.read_bytes())["trusted_publishers"]) == 8
    assert os.listdir(tmp_path) == ["trust.json"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to become another user")
def test_foreign_lock_on_directory_or_file_does_not_block_revoking(trust):
    """Any user can open, and so lock, the directory and the file."""
    trust("add", "acme", ACME)
    with contextlib.ExitStack() as stack:
        for place in (trust.path.parent, trust.path):
            fd = os.open(place, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        assert trust("revoke", "--plugin", "acme.demo@*")["revoked"]["plugins"] == ["acme.demo@*"]
    assert os.listdir(trust.path.parent) == ["trust.json"]


def test_policy_edit_fails_when_its_lock_stays_held(trust, ctl, monkeypatch):
    """It fails after LOCK_S and names the file; a lock file that is a link or open to others is refused."""
    monkeypatch.setattr("latticed.ctl.policy_file.LOCK_S", 0.1)
    trust("add", "acme", ACME)
    lock = trust.path.parent / ".trust.json.lock"
    with lock.open("wb") as held:
        lock.chmod(0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = ctl("trust", "remove", "acme", "--trust", str(trust.path))
        assert (ran.code, "another latticectl has been doing so for more than 0.1 s" in ran.err) == (1, True), ran.err
    lock.chmod(0o666)
    assert "with mode 0600, found uid" in ctl("trust", "remove", "acme", "--trust", str(trust.path)).err
    lock.unlink()
    lock.symlink_to("/dev/null")
    assert ctl("trust", "remove", "acme", "--trust", str(trust.path)).code == 5
    assert trust("show")["trusted_publishers"] == {"acme": ACME}


def test_policy_edit_without_write_permission_is_denied(ctl, tmp_path):
    """The exit code is 5, and the file is unchanged."""
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    path = tmp_path / "trust.json"
    path.write_bytes(b"{}")
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setresgid(65533, 65533, 65533)
            os.setresuid(65533, 65533, 65533)
            from latticed.ctl import main

            code = main.main(["trust", "add", "acme", ACME, "--trust", str(path)])
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    assert path.read_bytes() == b"{}"


def test_trust_show_asks_the_daemon_or_reads_the_file(ctl, api, trust):
    answer = {
        "ok": False,
        "error": "no valid JSON",
        "publishers": [{"publisher": "acme", "keys": [ACME], "ids": [], "max_risk": None}],
        "require_signature": True,
        "allow_unsigned_host_risk": False,
        "revoked": {"keys": [], "digests": [], "plugins": ["acme.demo@*"]},
    }
    api.override["GET trust"] = (200, answer)
    out = ctl("trust").out
    assert "valid               no\n" in out
    assert "error               no valid JSON\n" in out
    assert f"acme       {ACME}  any  any" in out
    assert "revoked plugins acme.demo@*\n" in out
    assert ctl("trust", "show", "--format", "json").json == answer
    trust("add", "acme", ACME, "--max-risk", "read")
    ran = ctl("trust", LATTICED_SOCKET="/nowhere/s", LATTICED_TRUST=str(trust.path))
    assert ran.code == 0
    assert "the daemon does not answer" in ran.err
    shown = ctl("trust", "show", "--trust", str(trust.path), "--format", "json").json
    assert shown["publishers"] == [{"publisher": "acme", "keys": [ACME], "ids": [], "max_risk": "read"}]
    assert shown.keys() == answer.keys() - {"error"} | {"path"}


def test_policy_that_the_disk_does_not_take_is_a_failure_and_no_denial(ctl, trust, monkeypatch):
    """Exit code 5 is for those who may not."""

    trust("add", "acme", ACME)
    real = os.open

    def read_only(path, *more, **named):
        if str(path).endswith(".lock"):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", read_only)
    ran = ctl("trust", "remove", "acme", "--trust", str(trust.path))
    assert (ran.code, "Read-only file system" in ran.err) == (1, True)
