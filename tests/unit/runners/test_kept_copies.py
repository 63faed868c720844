"""Artifacts kept in sealed memory: never other bytes than were hashed, never more than allowed, never after a stop.

In the second half a whole daemon with real children; what it holds is read from the kernel, what it hashes is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from wasmtime import wat2wasm

from latticed.bundle import read
from latticed.catalog.store import Store
from latticed.kit import logs
from latticed.kit.clock import SystemClock
from latticed.kit.executor import DaemonThreadExecutor
from latticed.model.errors import Problem
from latticed.runners import kept_copies
from latticed.runners.kept_copies import KeptCopies
from latticed.sandbox import artifact
from tests.house import bundles, children, in_process, long, supervisors, wasms

KIB = 1 << 10
LARGE = 1 << 20
PROGRAM = bundles.ARTIFACT + b"exit 0\n"
ID = "acme.large"
QUICK = "[supervision]\nbackoff_base_s = 0\nbackoff_ceiling_s = 0.1\nbreaker_failures = 1000\n"


def program(mark: str = "", size: int = LARGE) -> bytes:
    """A plugin of `size` bytes; another `mark` gives other bytes."""
    return (PROGRAM + mark.encode()).ljust(size, b"#")


def in_memory(*pids: int) -> list[Path]:
    """The artifacts in memory that this process has descriptors of, and those with these pids."""
    found = []
    for pid in (os.getpid(), *pids):
        with contextlib.suppress(OSError):  # the process, or a descriptor, is gone by now
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(entry).startswith("/memfd:artifact"):
                        found.append(entry)
    return found


def held(*pids: int) -> list[int]:
    """Their sizes."""
    found = []
    for entry in in_memory(*pids):
        with contextlib.suppress(OSError):  # closed in a thread meanwhile
            found.append(entry.stat().st_size)
    return found


class Stored:
    """Pairs in directories of their own, opened as the supervisor does."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, name: str, data: bytes) -> Path:
        bundles.drop(self._root, name, author=bundles.author(), artifact=data)
        return self._root / name / read.ARTIFACT

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[read.BundleDirectory]:
        with read.open_bundle(self._root / name, limits=read.ReadLimits(), owners=supervisors.owners()) as pair:
            yield pair

    async def start(self, copies: KeptCopies, name: str, data: bytes) -> None:
        """What a start does with the copy; its bytes are compared."""
        with self.open(name) as pair:
            copy = await copies.sealed(name, pair, sha256=hashlib.sha256(data).hexdigest())
        assert os.pread(copy.fd, len(data) + 1, 0) == data
        copy.close()


@pytest.fixture
def stored(tmp_path):
    return Stored(tmp_path)


@pytest.fixture
def hashed(monkeypatch):
    """How many bytes were hashed since it was cleared: a list of the sizes of updates."""
    sizes: list[int] = []
    real = hashlib.sha256

    class Counting:
        def __init__(self, data=b"", **options):
            self._inner = real(**options)
            self.update(data)

        def update(self, data):
            sizes.append(len(data))
            self._inner.update(data)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    monkeypatch.setattr(hashlib, "sha256", Counting)
    return sizes


def copies(most_bytes: int = 64 << 20) -> contextlib.closing[KeptCopies]:
    return contextlib.closing(KeptCopies(most_bytes))


async def test_kept_copy_is_neither_read_nor_hashed_again(stored, hashed):
    data = program()
    stored.write("one", data)
    with copies() as kept:
        await stored.start(kept, "one", data)
        hashed.clear()
        await stored.start(kept, "one", data)
        assert sum(hashed) == LARGE  # by this test itself
        assert (kept.bytes, held()) == (LARGE, [LARGE])
    await in_process.until(lambda: held() == [], "nothing held")


@pytest.mark.parametrize("way", ["written", "replaced", "shorter", "gone", "link"])
async def test_stored_file_that_was_touched_is_read_again(stored, tmp_path, way):
    """A kept copy never hides what was done to the stored file: it is refused as it would be without one."""
    data, aside = program(), tmp_path / "aside"
    path = stored.write("one", data)
    with copies() as kept:
        await stored.start(kept, "one", data)
        match way:
            case "written":
                bundles.tamper(path)
            case "replaced":
                aside.write_bytes(program("other"))
                os.utime(aside, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
                aside.rename(path)
            case "shorter":
                os.truncate(path, LARGE - 1)
            case "gone":
                path.unlink()
            case "link":
                path.rename(aside)
                path.symlink_to(aside)
        with pytest.raises((Problem, read.BundleRefused)) as refused:
            await stored.start(kept, "one", data)
        expected = {"gone": "artifact_missing", "link": "artifact_not_regular"}.get(way, "digest_mismatch")
        assert refused.value.fault.code == expected
        path.unlink(missing_ok=True)
        path.write_bytes(data)  # put back, as another file
        await stored.start(kept, "one", data)
        await in_process.until(lambda: held() == [LARGE], "one copy held")


async def test_other_digest_is_never_answered_with_the_kept_bytes(stored):
    """A pair of the same name whose manifest names other bytes."""
    stored.write("one", program())
    with copies() as kept:
        await stored.start(kept, "one", program())
        stored.write("two", program("other"))
        with stored.open("two") as pair:
            copy = await kept.sealed("one", pair, sha256=hashlib.sha256(program("other")).hexdigest())
        assert os.pread(copy.fd, LARGE, 0) == program("other")
        copy.close()


async def test_memory_that_is_not_sealed_is_not_used(stored, monkeypatch):
    """It cannot come to that: sealing fails while anything could still write. If it did, the file would be read."""
    data = program()
    stored.write("one", data)
    with copies() as kept, monkeypatch.context() as patch:
        patch.setattr(artifact, "close_for_good", lambda _: None)
        await stored.start(kept, "one", data)
        patch.undo()
        (forged,) = in_memory()
        forged.write_bytes(program("forged"))
        await stored.start(kept, "one", data)
        await in_process.until(lambda: len(in_memory()) == 1, "the forged one to be closed")
        (sealed,) = in_memory()
        with pytest.raises(PermissionError):
            sealed.write_bytes(program("forged"))


async def test_what_a_child_did_to_the_mode_of_its_program_ends_with_it(stored):
    """A child of the daemon's uid owns the memory that it runs, as far as the kernel knows."""
    data = program()
    stored.write("one", data)
    with copies() as kept:
        await stored.start(kept, "one", data)
        (before,) = in_memory()
        mode, inode = before.stat().st_mode, before.stat().st_ino
        before.chmod(0)
        await stored.start(kept, "one", data)
        await in_process.until(lambda: len(in_memory()) == 1, "the old one to be closed")
        (after,) = in_memory()
        assert after.stat().st_ino != inode
        assert after.stat().st_mode == mode


async def test_one_start_cannot_move_the_offset_of_the_next(stored):
    """Descriptors that children get are opened anew, for reading only: neither offset nor flags are shared."""
    data = program()
    stored.write("one", data)
    with copies() as kept:
        for _ in range(3):
            with stored.open("one") as pair:
                copy = await kept.sealed("one", pair, sha256=hashlib.sha256(data).hexdigest())
            assert os.pread(copy.fd, LARGE, 0) == data
            os.lseek(copy.fd, 0, os.SEEK_END)
            again = copy.again()
            assert os.lseek(again.fd, 0, os.SEEK_CUR) == 0
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(again.fd, b"x")
            again.close()
            copy.close()


async def test_bound_holds_with_many_plugins(stored):
    """The oldest starts make way; another bound holds from the moment it is set; small artifacts are never kept."""
    size, most = 300 * KIB, 10
    with copies(most * size + KIB) as kept:
        for number in range(40):
            name = str(number)
            stored.write(name, program(name, size))
            await stored.start(kept, name, program(name, size))
            assert kept.bytes == min(number + 1, most) * size
        await stored.start(kept, "30", program("30", size))  # the oldest of those kept, now the newest
        kept.allow(2 * size)
        await in_process.until(lambda: held() == [size] * 2, "two copies held")
        stored.write("small", program("small", kept_copies.LEAST_BYTES - 1))
        await stored.start(kept, "small", program("small", kept_copies.LEAST_BYTES - 1))
        stored.write("huge", program("huge", 2 * size + 1))
        await stored.start(kept, "huge", program("huge", 2 * size + 1))
        await in_process.until(lambda: held() == [size] * 2, "two copies held")
        kept.release("39")
        kept.release("39")
        await in_process.until(lambda: held() == [size], "the one that was started from last")
        kept.allow(0)
        await in_process.until(lambda: held() == [], "none")
        await stored.start(kept, "30", program("30", size))
        assert (kept.bytes, held()) == (0, [])


async def test_number_of_descriptors_is_bounded_too(stored, monkeypatch):
    monkeypatch.setattr(kept_copies, "MOST", 3)
    with copies() as kept:
        for number in range(5):
            stored.write(str(number), program(str(number), 300 * KIB))
            await stored.start(kept, str(number), program(str(number), 300 * KIB))
        await in_process.until(lambda: len(held()) == 3, "three copies held")


async def test_without_a_descriptor_left_nothing_is_kept(stored, monkeypatch):
    """The start has its copy all the same."""
    data = program()
    stored.write("one", data)

    def none_left(_: object) -> None:
        raise OSError(24, "Too many open files")

    with copies() as kept, monkeypatch.context() as patch:
        patch.setattr(artifact.SealedCopy, "again", none_left)
        await stored.start(kept, "one", data)
        assert (kept.bytes, held()) == (0, [])


async def test_without_a_thread_left_no_descriptor_stays(stored):
    """A start fails then, but a plugin that is stopped is let go of."""
    data = program()
    stored.write("one", data)
    with copies() as kept:
        await stored.start(kept, "one", data)
        none_left = DaemonThreadExecutor()
        none_left.shutdown()
        asyncio.get_running_loop().set_default_executor(none_left)
        with pytest.raises(RuntimeError):
            await stored.start(kept, "one", data)
        assert held() == [LARGE]
        kept.release("one")
        assert (kept.bytes, held()) == (0, [])


# A whole daemon.


class Ahead(SystemClock):
    """A clock that is a second ahead of that of the file system."""

    def wall_us(self) -> int:
        return super().wall_us() + 1_000_000


@contextlib.asynccontextmanager
async def daemon(
    toml: str = "", *, bundle: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[in_process.Home]:
    """One to whose plugin directory the large plugin was dropped, with these fields of its manifest."""
    fields = {"capabilities": ["kv:read"], "v2": True, "artifact": program(), "version": "1.0.0", **(bundle or {})}
    async with in_process.opened(toml=QUICK + toml, real=True, **options) as home:
        home.drop("large", id=ID, **fields)
        await home.seen(ID)
        yield home


async def up(home: in_process.Home) -> int:
    for status in ("installed", "active"):
        assert (await home.decide(ID, status)).status == 200
    return await pid_of(home)


async def pid_of(home: in_process.Home, before: int = 0) -> int:
    """The pid of the armed plugin, once it is not `before` any more."""
    holds = lambda plugin: plugin["runtime"]["state"] == "armed" and plugin["runtime"].get("pid", 0) not in {0, before}  # noqa: E731
    return int((await home.until_plugin(ID, holds))["runtime"]["pid"])


async def crash(home: in_process.Home, pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return await pid_of(home, pid)


async def reload(home: in_process.Home, line: str) -> None:
    """Have the settings of supervision say this, too."""
    config = home.root / "latticed.toml"
    kept = [old for old in config.read_text().splitlines() if old.partition(" = ")[0] != line.partition(" = ")[0]]
    config.write_text("\n".join(kept).replace("[supervision]", f"[supervision]\n{line}"))
    await home.app.reloader.reload()


@pytest.fixture
def plain_log():
    """A reload configures the log; afterwards it is as tests have it."""
    yield
    logs.reset()


async def metrics(home: in_process.Home) -> list[str]:
    return (await home.ask("GET", "/metrics"))["raw"].decode().splitlines()


async def nothing_held() -> None:
    """No descriptor of an artifact here or in a child, so none of its memory."""
    await in_process.until(lambda: held(*children.descendants(os.getpid())) == [], "nothing held")


async def test_artifact_is_hashed_once_for_each_place_and_never_for_a_restart(hashed, monkeypatch):
    """Dropped: in the plugin directory. Installed: while it is stored. Activated: in the memory that is executed. The
    stored pair is judged at each start all the same.
    """
    judged: list[str] = []
    real = Store.verify
    monkeypatch.setattr(Store, "verify", lambda *args, **options: judged.append("start") or real(*args, **options))

    def times() -> int:
        return round(sum(hashed) / LARGE) - 1  # the author of the bundle hashed it as well

    # Files that are not so new that the next look at the plugin directory would read them again.
    async with daemon(clock=Ahead()) as home:
        assert times() == 1
        assert (await home.decide(ID, "installed")).status == 200
        assert times() == 2
        assert (await home.decide(ID, "active")).status == 200
        assert times() == 3
        pid = await pid_of(home)
        for _ in range(3):
            judged.clear()
            pid = await crash(home, pid)
            assert judged == ["start"]
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/restart")).status == 200
        assert times() == 3
        home.app.api.catalog.rescan(rehash=True)
        await in_process.until(lambda: times() == 4, "the plugin directory to be hashed")


@pytest.mark.parametrize("kind", ["stdio-json-v1", "wasm"])
async def test_other_kinds_of_plugins_keep_their_copy_too(hashed, kind):
    """One that has a process for each invocation only, and a module, whose compiled code is kept on disk as before."""
    padding = b"\0" + leb128(LARGE) + b"\x01x".ljust(LARGE, b"\0")  # a custom section (WebAssembly, binary format §2.5)
    module = {"type": "wasm", "artifact": bytes(wat2wasm(wasms.module())) + padding}
    # Nor is the plugin directory read again: as in the test of what is hashed for each place.
    async with daemon(bundle={"v2": False} if kind == "stdio-json-v1" else module, clock=Ahead()) as home:
        for status in ("installed", "active"):
            assert (await home.decide(ID, status)).status == 200
        before = home.dropped["large"].artifact
        kept = home.app.api.supervisor.kept_artifact_bytes
        hashed.clear()
        answer = await home.ask("POST", f"/api/plugins/by-id/{ID}/restart")
        assert (answer.status, answer["runtime"]["state"]) == (200, "armed"), answer
        assert kept == len(before)
        assert sum(hashed) < LARGE
        assert (await home.decide(ID, "disabled")).status == 200
        await nothing_held()


def leb128(value: int) -> bytes:
    """An unsigned number as WebAssembly writes it."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + leb128(rest) if rest else bytes([low])


@pytest.mark.parametrize("way", ["disabled", "tampered", "revoked", "untrusted", "gone"])
async def test_nothing_of_a_plugin_is_held_once_it_may_not_run(way):
    async with daemon() as home:
        await up(home)
        await in_process.until(lambda: held() == [LARGE], "one copy held")
        assert f"latticed_kept_artifact_bytes {LARGE}" in (await metrics(home))
        match way:
            case "disabled":
                assert (await home.decide(ID, "disabled")).status == 200
            case "tampered":
                bundles.tamper(home.dropped["large"].artifact_path)
            case "revoked":
                home.trust.write_bytes(bundles.policy_bytes(home.author, revoked={"plugins": [f"{ID}@1.0.0"]}))
            case "untrusted":
                home.trust.write_bytes(bundles.policy_bytes())
            case "gone":
                home.dropped["large"].path.rename(home.root / "aside")
        await home.look()
        await home.until_plugin(ID, lambda plugin: plugin["runtime"]["state"] != "armed")
        await nothing_held()
        assert "latticed_kept_artifact_bytes 0" in (await metrics(home))


async def test_bound_takes_effect_at_a_reload(plain_log):
    """What runs goes on, and its next start copies the artifact again."""
    async with daemon() as home:
        pid = await up(home)
        await reload(home, "kept_artifact_bytes = 0")
        await in_process.until(lambda: held() == [], "nothing held by the daemon")
        assert await crash(home, pid) != pid
        assert home.app.api.supervisor.kept_artifact_bytes == 0
        await in_process.until(lambda: held() == [], "the copy that was started from to be closed")


async def test_damaged_store_is_seen_and_an_open_breaker_lets_go(plain_log):
    """A damaged pair is replaced by the bundle on disk, which still verifies; then the plugin is armed again."""
    async with daemon() as home:
        pid = await up(home)
        (stored,) = (home.root / "state" / "store").glob("*/artifact")
        stored.chmod(0o600)
        bundles.tamper(stored)
        pid = await crash(home, pid)
        assert [event["code"] for event in home.events(action="plugin.mended")] == ["digest_mismatch"]
        await in_process.until(lambda: held() == [LARGE], "the mended pair held")
        await reload(home, "breaker_failures = 1")
        os.kill(pid, signal.SIGKILL)
        await home.until_plugin(ID, lambda plugin: plugin["runtime"]["state"] == "failed")
        await nothing_held()


async def test_policy_counts_at_each_start_from_a_kept_copy():
    """What was revoked is refused, whatever memory still holds, when the start comes before the poll of the policy."""
    async with daemon() as home:
        pid = await up(home)
        digest = hashlib.sha256(program()).hexdigest()
        home.trust.write_bytes(bundles.policy_bytes(home.author, revoked={"digests": [digest]}))
        home.app.api.policy.look()
        os.kill(pid, signal.SIGKILL)
        plugin = await home.until_plugin(ID, lambda plugin: plugin["runtime"]["state"] == "failed")
        assert plugin["runtime"]["last_error"]["code"] == "digest_revoked"
        await nothing_held()


async def test_watched_upgrade_holds_both_versions_and_a_rollback_one():
    async with daemon("[upgrade]\ngate_s = 3600\n") as home:
        await up(home)
        home.drop("large", id=ID, capabilities=["kv:read"], v2=True, artifact=program("2"), version="2.0.0")
        await home.until_plugin(ID, lambda plugin: plugin.get("candidate"))
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade")).status == 200
        await in_process.until(lambda: held() == [LARGE] * 2, "both versions held")
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/rollback")).status == 200
        await in_process.until(lambda: held() == [LARGE], "the version that runs held")
        assert (await home.decide(ID, "disabled")).status == 200
        await nothing_held()


async def test_restarts_leave_no_descriptor_and_no_memory():
    async with daemon() as home:
        pid = await up(home)
        pid = await crash(home, pid)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(long.times(20, 200)):
            pid = await crash(home, pid)
        await in_process.until(lambda: held() == [LARGE], "one copy held")
        await in_process.until(lambda: len(os.listdir("/proc/self/fd")) <= before, "no descriptor more")
