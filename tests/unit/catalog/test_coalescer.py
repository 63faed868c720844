"""Which sightings are reported to the catalog's reader, and how many are buffered."""

from __future__ import annotations

from latticed.catalog.coalescer import Coalescer, Sighting, same
from latticed.catalog.dirty_names import MAX_NAMES, DirtyNames
from latticed.catalog.mounts import MountTable
from latticed.model.manifest import Manifest
from latticed.model.verdict import Code, Refused, Verified
from tests.house import forks

MANIFEST = Manifest(id="acme.demo", name="Demo", type="system", capabilities=("kv:read",))


def verified(identity: str, artifact: str = "a") -> Verified:
    return Verified(manifest=MANIFEST, identity=identity, artifact_sha256=artifact, artifact_bytes=1, key="")


def refused(code: Code, reason: str = "") -> Refused:
    return Refused(code=code, reason=reason)


def test_sightings_are_same_if_identity_and_artifact_or_refusal_are() -> None:
    """Identity and artifact of verified bundles count, all that a refusal says, the absence of removed ones."""
    assert same(verified("1"), verified("1"))
    assert not same(verified("1"), verified("2"))
    assert not same(verified("1"), verified("1", artifact="b"))
    assert same(refused(Code.UNREADABLE, "one"), refused(Code.UNREADABLE, "one"))
    assert not same(refused(Code.UNREADABLE, "one"), refused(Code.UNREADABLE, "other"))
    assert not same(refused(Code.UNREADABLE), refused(Code.MANIFEST_INVALID))
    assert not same(verified("1"), refused(Code.UNREADABLE))
    assert not same(None, verified("1"))
    assert same(None, None)


def test_verified_after_a_reported_refusal_is_reported() -> None:
    """The reader that got the refusal must learn that it is over."""
    box = Coalescer()
    heard = []
    for verdict in (verified("1"), verified("1"), refused(Code.DIGEST_MISMATCH), verified("1"), None, None):
        box.post([("p", verdict)])
        heard.extend(box.take())
    assert [sighting.verdict for sighting in heard] == [
        verified("1"),
        refused(Code.DIGEST_MISMATCH),
        verified("1"),
        None,
    ]


def test_slow_reader_gets_latest_sighting_once() -> None:
    """It gets none for a name that was added and removed, or changed and changed back."""
    box = Coalescer()
    box.post([("stays", verified("1"))])
    box.take()
    box.post([("brief", verified("2")), ("stays", refused(Code.UNREADABLE)), ("new", verified("3"))])
    box.post([("brief", None), ("stays", verified("1")), ("new", verified("4"))])
    assert box.take() == (Sighting(name="new", verdict=verified("4")),)
    assert box.take() == ()


def test_dirty_names_wake_the_loop_once_until_taken() -> None:
    """Too many names are replaced by a scan."""
    woken: list[int] = []
    dirty = DirtyNames(lambda: woken.append(1))
    for _ in range(100):
        dirty.note("p")
    assert len(woken) == 1
    batch = dirty.take()
    assert (batch.names, batch.scan, batch.events) == (frozenset({"p"}), False, 100)
    for number in range(MAX_NAMES + 1):
        dirty.note(str(number))
    batch = dirty.take()
    assert batch.scan
    assert len(woken) == 2
    assert not dirty.take().names


@forks.as_root
def test_change_of_mount_table_is_reported_once() -> None:
    import asyncio
    import ctypes
    import subprocess
    import tempfile

    async def story() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x00020000) == 0  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        table = MountTable()
        assert not table.changed()
        with tempfile.TemporaryDirectory() as place:
            subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
            assert table.changed()
            assert not table.changed()
            subprocess.run(["umount", place], check=True)
            assert table.changed()
        table.close()
        table.close()
        await asyncio.sleep(0)

    forks.run_as(0, story)
