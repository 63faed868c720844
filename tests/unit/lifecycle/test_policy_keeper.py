"""The trust policy in force: what a missing, bad or unsafe file does at boot and on a reload."""

from __future__ import annotations

import json
import os

import pytest

from latticed.lifecycle.policy import MAX_BYTES, PolicyKeeper
from latticed.trust import policy as trust
from latticed.trust.policy import Revoked
from tests.house import bundles

ACME = bundles.author()
OWNERS = frozenset({0, os.geteuid()})
NOTHING = Revoked()


def keeper(path, *, remembered=NOTHING, owners=OWNERS):
    found = PolicyKeeper(path, owners=owners, remembered=remembered)
    found.look(always=True)
    return found


def test_good_policy_file_is_in_force_without_a_problem(tmp_path):
    file = tmp_path / "trust.json"
    file.write_bytes(bundles.policy_bytes(ACME))
    found = keeper(file)
    assert (list(found.current.publishers), found.problem) == (["acme"], None)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "policy_missing"),
        (b"", "policy_invalid"),
        (b"{", "policy_invalid"),
        (b'{"trusted_publisher": {}}', "policy_invalid"),
        (b" " * (MAX_BYTES + 1), "policy_unreadable"),
    ],
)
def test_no_publisher_is_trusted_without_good_policy_file_at_boot(tmp_path, content, code):
    """Health says which file, and why."""
    file = tmp_path / "trust.json"
    if content is not None:
        file.write_bytes(content)
    found = keeper(file)
    assert found.current == trust.NOBODY
    assert found.problem is not None
    assert found.problem.code == code


def test_policy_that_is_no_regular_file_does_not_block(tmp_path):
    """Opening a FIFO would block; a directory cannot be read."""
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        found = keeper(tmp_path / name)
        assert found.current == trust.NOBODY
        assert found.problem is not None
        assert found.problem.code == "policy_unreadable"


@pytest.mark.parametrize("unsafe", ["file", "directory", "owner"])
def test_policy_file_writable_by_others_is_not_used(tmp_path, unsafe):
    """The file or a directory above it has an unsafe mode or owner; the problem names the place."""
    home = tmp_path / "etc"
    home.mkdir(mode=0o755)
    file = home / "trust.json"
    file.write_bytes(bundles.policy_bytes(ACME))
    owners = OWNERS
    if unsafe == "file":
        file.chmod(0o666)
    elif unsafe == "directory":
        home.chmod(0o777)
    else:
        owners = frozenset({12_345})
    found = keeper(file, owners=owners)
    assert found.current == trust.NOBODY
    assert found.problem is not None
    assert found.problem.code == "policy_unsafe"
    assert str(home) in found.problem.reason


@pytest.mark.parametrize("spoil", ["bad", "gone", "unsafe"])
def test_reload_of_bad_policy_file_keeps_old_policy(tmp_path, spoil):
    """`problem` is set until the file is valid again; until then the publishers of the old policy are trusted."""
    file = tmp_path / "trust.json"
    file.write_bytes(bundles.policy_bytes(ACME))
    found = keeper(file)
    match spoil:
        case "bad":
            file.write_bytes(b"{}{}")
        case "gone":
            file.unlink()
        case "unsafe":
            file.chmod(0o622)
    assert found.look()
    assert list(found.current.publishers) == ["acme"]
    assert found.problem is not None
    assert not found.look(), "nothing changed since"
    file.unlink(missing_ok=True)
    file.write_bytes(bundles.policy_bytes(ACME, bundles.author("rival")))
    assert found.look()
    assert (sorted(found.current.publishers), found.problem) == (["acme", "rival"], None)


def test_rewritten_policy_of_equal_content_is_no_change(tmp_path):
    """White space is added."""
    file = tmp_path / "trust.json"
    file.write_bytes(bundles.policy_bytes(ACME))
    found = keeper(file)
    assert not found.look()
    file.write_bytes(bundles.policy_bytes(ACME) + b"\n")
    assert not found.look()
    file.write_bytes(bundles.policy_bytes(ACME, require_signature=False))
    assert found.look()


def test_target_of_linked_policy_must_be_safe(tmp_path):
    """Its owner and mode are checked, not those of the link."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "trust.json").write_bytes(bundles.policy_bytes(ACME))
    (tmp_path / "trust.json").symlink_to(real / "trust.json")
    assert keeper(tmp_path / "trust.json").problem is None
    real.chmod(0o777)
    assert keeper(tmp_path / "trust.json").problem is not None


def test_revocation_stays_when_removed_from_file(tmp_path):
    """It also stays when the file is lost."""
    file = tmp_path / "trust.json"
    file.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": ["acme.demo@*"]}))
    remembered = Revoked(keys=frozenset({ACME.public}))
    found = keeper(file, remembered=remembered)
    both = Revoked(keys=frozenset({ACME.public}), plugins=frozenset({"acme.demo@*"}))
    assert found.current.revoked == both
    found.remember(both)
    file.write_text(json.dumps(bundles.policy(ACME)))
    found.look()
    assert found.current.revoked == both
    assert found.own.revoked == Revoked()
    assert keeper(tmp_path / "none", remembered=both).current.revoked == both
