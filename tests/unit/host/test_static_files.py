"""static.*: paths are confined, sizes bounded, and each file is replaced atomically."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import Caller, HostError
from latticed.host.static import calls as static
from latticed.host.static import tree as static_tree
from latticed.host.static.calls import ListFiles, StaticCalls, StaticDelete, StaticGet, StaticPut
from latticed.host.static.tree import StaticFiles, StaticQuota
from latticed.model import published
from latticed.model.hostcall import Denial
from latticed.settings import shapes
from tests.house import faults, processes

PLUGIN, OTHER = Caller(plugin_id="acme.demo"), Caller(plugin_id="acme.other")
LIMITS = shapes.StaticSettings(plugin_files=4, file_bytes=1_000, plugin_bytes=2_000)
QUOTA = StaticQuota(files=10, total_bytes=1 << 22)


class Desk:
    """The service, called as the broker does."""

    def __init__(self, directory: Path) -> None:
        self.shared: set[tuple[str, str]] = set()
        self.root = directory
        self.directory = directory / published.UNSIGNED
        self.publisher = ""
        self.published = True
        self.service = StaticCalls(
            directory,
            limits=LIMITS,
            publisher=lambda _owner: self.publisher,
            may_read=lambda reader, owner: self.published and (reader == owner or (reader, owner) in self.shared),
        )
        self._serve = {call.method: call.serve for call in self.service.calls()}

    async def put(self, path: str, content: str | bytes = "", caller: Caller = PLUGIN):
        if isinstance(content, bytes):
            asked = StaticPut(path=path, content_base64=base64.b64encode(content).decode())
        else:
            asked = StaticPut(path=path, content=content)
        return await self._serve["static.put"](caller, asked)

    async def get(self, path: str, caller: Caller = PLUGIN, **asked):
        return await self._serve["static.get"](caller, StaticGet(path=path, **asked))

    async def paths(self, caller: Caller = PLUGIN, **asked):
        found = await self._serve["static.list"](caller, ListFiles(**asked))
        return [file["path"] for file in found["files"]]

    async def delete(self, path: str, caller: Caller = PLUGIN):
        return await self._serve["static.delete"](caller, StaticDelete(path=path))

    async def refused(self, asked) -> HostError:
        with pytest.raises(HostError) as caught:
            await asked
        assert str(self.directory) not in caught.value.reason
        return caught.value

    def on_disk(self) -> list[str]:
        return sorted(str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.is_file())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "static")


async def test_static_file_that_was_put_is_returned_by_get(desk: Desk) -> None:
    """It is text or base64 with type, size and ETag; modes 0700 and 0600 on disk; a missing file is `ok: false`."""
    put = await desk.put("docs/read me.txt".replace(" ", "-"), "grüße\n")
    text = "grüße\n".encode()
    assert put == {"ok": True, "bytes": 8, "content_type": "text/plain; charset=utf-8", "etag": static.etag(text)}
    found = await desk.get("docs/read-me.txt")
    assert (found["content"], found["bytes"], found["etag"]) == ("grüße\n", 8, put["etag"])
    assert base64.b64decode(found["content_base64"]) == text
    await desk.put("logo.PNG", b"\xff\x00")
    raw = await desk.get("logo.PNG")
    assert (raw["content"], raw["content_type"]) == (None, "image/png")
    assert await desk.get("absent.txt") == {"ok": False}
    assert await desk.get("docs/read-me.txt/more.txt") == {"ok": False}
    assert await desk.get("docs") == {"ok": False}
    modes = {path.name: path.stat().st_mode & 0o7777 for path in desk.directory.rglob("*")}
    assert modes == {"acme.demo": 0o700, "docs": 0o700, "read-me.txt": 0o600, "logo.PNG": 0o600}


async def test_large_static_file_is_read_by_offset(desk: Desk) -> None:
    """`bytes` is the size of the whole file; an offset at its end gives empty content."""
    desk.service.limits = replace(LIMITS, file_bytes=1 << 20, plugin_bytes=1 << 20)
    data = os.urandom(static.MAX_ANSWER_BYTES + 10)
    await desk.put("big.bin", data)
    parts = [await desk.get("big.bin", offset=offset) for offset in (0, static.MAX_ANSWER_BYTES, len(data))]
    assert b"".join(base64.b64decode(part["content_base64"]) for part in parts) == data
    assert {part["bytes"] for part in parts} == {len(data)}
    part = await desk.get("big.bin", offset=1, length=2)
    assert base64.b64decode(part["content_base64"]) == data[1:3]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": "big.bin", "offset": -1}, StaticGet)


async def test_static_list_shows_files_until_deleted(desk: Desk) -> None:
    """Lists take a prefix and a cursor and are sorted; directories that become empty are removed."""
    for path in ("b/2.txt", "a.txt", "b/1/x.txt", "b.txt"):
        await desk.put(path)
    assert await desk.paths() == ["a.txt", "b.txt", "b/1/x.txt", "b/2.txt"]
    assert await desk.paths(prefix="b/", after="b/1/x.txt") == ["b/2.txt"]
    assert await desk.delete("b/1/x.txt") == {"ok": True}
    assert await desk.delete("b/1/x.txt") == {"ok": False}
    assert await desk.delete("b") == {"ok": False}
    assert os.listdir(desk.directory / "acme.demo" / "b") == ["2.txt"]
    await desk.delete("b/2.txt")
    assert sorted(os.listdir(desk.directory / "acme.demo")) == ["a.txt", "b.txt"]


async def test_list_of_static_files_is_paginated(desk: Desk) -> None:
    """`next` of one page is `after` of the next one."""
    desk.service.limits = replace(LIMITS, plugin_files=1_000)
    await desk.put("a.txt")
    for number in range(static.PAGE):
        (desk.directory / "acme.demo" / f"n{number:03}.txt").write_text("")
    serve = desk._serve["static.list"]
    first = await serve(PLUGIN, ListFiles())
    assert (len(first["files"]), first["next"]) == (static.PAGE, f"n{static.PAGE - 2:03}.txt")
    second = await serve(PLUGIN, ListFiles(after=first["next"]))
    assert ([file["path"] for file in second["files"]], second["next"]) == ([f"n{static.PAGE - 1:03}.txt"], None)


async def test_list_of_static_files_has_their_digests(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of their present bytes, whoever wrote them; what has not changed is not read again; a file that goes meanwhile is
    left out.
    """
    reads: list[str] = []
    read = StaticFiles.read
    monkeypatch.setattr(StaticFiles, "read", lambda *args: reads.append(args[2]) or read(*args))

    async def digests() -> dict[str, str]:
        found = await desk._serve["static.list"](PLUGIN, ListFiles(digests=True))
        return {one["path"]: one["sha256"] for one in found["files"]}

    def expected(**texts: str) -> dict[str, str]:
        return {f"{name}.txt": hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

    await desk.put("a.txt", "one")
    await desk.put("b.txt", "two")
    assert await digests() == await digests() == expected(a="one", b="two")
    assert reads == ["a.txt", "b.txt"]
    await desk.put("a.txt", "eno")
    (desk.directory / "acme.demo" / "b.txt").write_text("owt")
    assert await digests() == expected(a="eno", b="owt")
    await desk.put("c.txt", "gone")
    monkeypatch.setattr(StaticFiles, "read", lambda *_: None)
    assert await digests() == expected(a="eno", b="owt")


async def test_static_files_of_other_plugin_need_a_share(desk: Desk) -> None:
    """A plugin sees its own files; another's only where the operator shares them, and read-only."""
    await desk.put("a.txt", "mine")
    await desk.put("a.txt", "theirs", OTHER)
    assert (await desk.get("a.txt"))["content"] == "mine"
    assert (await desk.get("a.txt", plugin="acme.demo"))["content"] == "mine"
    for owner in ("acme.other", "../acme.other", "acme.other/..", "x"):
        assert (await desk.refused(desk.get("a.txt", plugin=owner))).code is Denial.BAD_PARAMS
    desk.shared.add(("acme.demo", "acme.other"))
    assert (await desk.get("a.txt", plugin="acme.other"))["content"] == "theirs"
    assert await desk.paths(plugin="acme.other") == ["a.txt"]
    assert (await desk.refused(desk.get("a.txt", OTHER, plugin="acme.demo"))).code is Denial.BAD_PARAMS


HOSTILE = [
    *("", ".", "..", "/", "/etc/passwd.txt", "a//b.txt", "a/", "/a.txt", "a/../b.txt", "../a.txt", "a/..", "a..b.txt"),
    *("%2e%2e/a.txt", "%2e%2e%2fa.txt", "..%2fa.txt", "..%5ca.txt", "a\\b.txt", "..\\a.txt", "%252e%252e/a.txt"),
    *("．．/a.txt", "․․/a.txt", "a\u2024\u2024/b.txt", "..\u2215a.txt", "\u2025/a.txt", "a/\u0000.txt", "a.txt\0.png"),
    *(".hidden.txt", "a/.put-0011.txt", ".well-known/a.txt", "-rf.txt", "a b.txt", "a\n.txt", "é.txt", "a:b.txt"),
    *("x" * 129 + ".txt", "/".join("a" * 9), "/".join(["a" * 127] * 4) + ".txt.txt"),
]


@pytest.mark.parametrize("path", HOSTILE)
async def test_hostile_paths_are_refused_by_every_static_call(desk: Desk, path: str) -> None:
    """No encoding of a path leaves the plugin's directory or names the temporary files in it."""
    await desk.put("a.txt")
    for asked in (desk.put(path, "x"), desk.get(path), desk.delete(path)):
        assert (await desk.refused(asked)).code is Denial.BAD_PARAMS
    assert (await desk.refused(desk.service.read("acme.demo", "acme.demo", path))).code is Denial.NOT_FOUND
    assert desk.on_disk() == ["acme.demo/a.txt"]


@given(st.text(max_size=40) | st.text("ab-_./", max_size=12))
def test_accepted_path_is_already_normal(path: str) -> None:
    """Any accepted path is relative, ASCII, without `..`, and unchanged by normalisation."""
    if published.path_fault(path) is None:
        assert path.isascii()
        assert os.path.normpath(path) == path
        assert not os.path.isabs(path)
        assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "path", ["a.html", "a.htm", "a.svg", "a.SVG", "a.xhtml", "a.xml", "a.txt.html", "a", "txt", "a.exe"]
)
async def test_static_file_of_unlisted_type_is_refused(desk: Desk, path: str) -> None:
    """HTML and SVG are off unless the operator allows them."""
    error = await desk.refused(desk.put(path, "<script>"))
    assert error.code is Denial.BAD_PARAMS
    assert "(html, svg are off)" in error.reason
    desk.service.limits = replace(LIMITS, html=True, svg=True)
    if path in {"a.html", "a.htm", "a.svg", "a.SVG", "a.txt.html"}:
        assert (await desk.put(path, "<script>"))["content_type"].partition(";")[0] in {"text/html", "image/svg+xml"}
        page = await desk.service.read("acme.demo", "acme.demo", path)
        assert page.headers["Content-Security-Policy"] == published.PAGE_POLICY
        desk.service.limits = LIMITS
        assert (await desk.refused(desk.service.read("acme.demo", "acme.demo", path))).code is Denial.NOT_FOUND
    else:
        assert (await desk.refused(desk.put(path, "x"))).code is Denial.BAD_PARAMS


async def test_static_put_over_quota_is_refused(desk: Desk) -> None:
    """The quotas are of bytes per file, files and bytes per plugin; a refused put changes nothing; a smaller
    replacement fits.
    """
    assert (await desk.refused(desk.put("a.txt", "x" * 1_001))).code is Denial.TOO_LARGE
    await desk.put("a.txt", "x" * 1_000)
    await desk.put("b.txt", "x" * 900)
    error = await desk.refused(desk.put("deep/er/c.txt", "x" * 101))
    assert (error.code, error.reason) == (
        Denial.QUOTA_EXCEEDED,
        "expected at most 2000 bytes in all files, found 2001",
    )
    assert (await desk.refused(desk.put("b.txt", "x" * 1_001 + "y"))).code is Denial.TOO_LARGE
    assert not (desk.directory / "acme.demo" / "deep").exists()
    await desk.put("c.txt", "x" * 100)
    desk.service.limits = replace(LIMITS, plugin_bytes=10)
    await desk.put("a.txt", "x" * 999)
    assert (await desk.refused(desk.put("a.txt", "x" * 1_000))).code is Denial.QUOTA_EXCEEDED
    desk.service.limits = LIMITS
    await desk.put("d.txt")
    error = await desk.refused(desk.put("e.txt"))
    assert (error.code, error.reason) == (Denial.QUOTA_EXCEEDED, "expected at most 4 files, found 4")
    await desk.put("b.txt", "again")
    await desk.delete("d.txt")
    await desk.put("e.txt", caller=OTHER)
    await desk.put("e.txt")
    assert len(await desk.paths()) == 4
    again = Desk(desk.root)  # usage is counted again from the disk
    assert (await again.refused(again.put("f.txt"))).code is Denial.QUOTA_EXCEEDED


async def test_file_and_directory_do_not_replace_each_other(desk: Desk) -> None:
    await desk.put("a.txt")
    await desk.put("dir.txt/b.txt")
    for path in ("a.txt/b.txt", "dir.txt"):
        assert (await desk.refused(desk.put(path, "x"))).code is Denial.BAD_PARAMS
    assert await desk.paths() == ["a.txt", "dir.txt/b.txt"]


async def test_static_put_takes_exactly_one_content(desk: Desk) -> None:
    """Either text or base64, and the base64 must be valid."""
    serve = desk._serve["static.put"]
    for fields in ({}, {"content": "", "content_base64": ""}, {"content_base64": "a"}, {"content_base64": "é"}):
        assert (await desk.refused(serve(PLUGIN, StaticPut(path="a.txt", **fields)))).code is Denial.BAD_PARAMS


@pytest.mark.parametrize("link", ["file", "directory", "owner", "pipe"])
async def test_symlinks_and_fifos_among_static_files_are_not_followed(desk: Desk, tmp_path: Path, link: str) -> None:
    """Placed in the tree by another process: reads find nothing, writes change nothing outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("outside")
    home = desk.directory / "acme.demo"
    if link == "owner":
        desk.directory.mkdir(mode=0o700, parents=True)
        home.symlink_to(outside)
        path = "a.txt"
    else:
        home.mkdir(parents=True)
        path = "in/a.txt" if link == "directory" else "a.txt"
        if link == "pipe":
            os.mkfifo(home / "a.txt")
        else:
            (home / path.partition("/")[0]).symlink_to(outside if link == "directory" else outside / "a.txt")
    assert await desk.get(path) == {"ok": False}
    assert await desk.paths() == []
    outcome = (await asyncio.gather(desk.put(path, "inside"), return_exceptions=True))[0]
    if isinstance(outcome, HostError):
        assert outcome.code in {Denial.SERVICE_UNAVAILABLE, Denial.BAD_PARAMS}
    else:
        assert (await desk.get(path))["content"] == "inside"
    assert (outside / "a.txt").read_text() == "outside"
    assert os.listdir(outside) == ["a.txt"]


async def test_plugin_of_another_publisher_sees_no_files(desk: Desk) -> None:
    """Files are kept per publisher and id, so a crash while an id changes publisher cannot mix them."""
    desk.publisher = "acme"
    await desk.put("a.txt", "old")
    desk.publisher = "a" * 128
    assert await desk.paths() == []
    await desk.put("a.txt", "new")
    desk.publisher = ""  # unsigned
    assert await desk.paths() == []
    desk.publisher = "acme"
    assert (await desk.get("a.txt"))["content"] == "old"


async def test_files_are_not_served_while_plugin_may_not_publish(desk: Desk) -> None:
    await desk.put("a.txt", "here")
    assert (await desk.service.read("acme.demo", "acme.demo", "a.txt")).body == b"here"
    desk.published = False
    with pytest.raises(HostError) as gone:
        await desk.service.read("acme.demo", "acme.demo", "a.txt")
    assert gone.value.code is Denial.NOT_FOUND


# Disk errors and kills.


@pytest.mark.root
async def test_static_put_on_full_disk_keeps_old_file(tmp_path: Path) -> None:
    """A real file system without space: service_unavailable, no partial file, and puts work once there is space."""
    place = tmp_path / "small"
    place.mkdir()
    with faults.small_disk(place, kib=128, uid=os.getuid()):
        desk = Desk(place / "static")
        desk.service.limits = shapes.StaticSettings()
        await desk.put("a.txt", "old")
        faults.fill(place / "filling")
        for path in ("a.txt", "new/b.txt"):
            error = await desk.refused(desk.put(path, "x" * 50_000))
            assert (error.code, error.reason) == (
                Denial.SERVICE_UNAVAILABLE,
                "files cannot be kept right now: No space left on device",
            )
        assert (await desk.get("a.txt"))["content"] == "old"
        assert desk.on_disk() == ["acme.demo/a.txt"]
        (place / "filling").unlink()
        await desk.put("a.txt", "x" * 50_000)
        assert (await desk.get("a.txt"))["bytes"] == 50_000


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS, errno.EDQUOT])
async def test_static_put_with_disk_error_keeps_old_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    """Any system call before the rename may fail; the failed put does not count against quotas."""

    def fails(*_args, **_named):
        raise OSError(error, os.strerror(error))

    await desk.put("in/a.txt", "old")
    with monkeypatch.context() as sick:
        sick.setattr(static_tree.os, call, fails)
        path = "other/b.txt" if call == "mkdir" else "in/a.txt"
        assert (await desk.refused(desk.put(path, "x" * 900))).code is Denial.SERVICE_UNAVAILABLE
    assert (await desk.get("in/a.txt"))["content"] == "old"
    assert desk.on_disk() == ["acme.demo/in/a.txt"]
    await desk.put("b.txt", "x" * 1_000)
    await desk.put("c.txt", "x" * 997)


KILLED = """
import os, signal, sys
from pathlib import Path
from latticed.host.static import tree as static_tree
def rename(*_args, **_named):
    os.kill(os.getpid(), signal.SIGKILL)
static_tree.os.rename = rename
tree = static_tree.StaticFiles(Path(sys.argv[1]))
quota = static_tree.StaticQuota(files=10, total_bytes=10**6)
tree.put("-/acme.demo", "in/a.txt", b"new" * 1000, quota)
"""


async def test_static_put_killed_before_rename_keeps_old_file(desk: Desk) -> None:
    """The temporary file is neither listed nor served, and is removed by the next put."""
    await desk.put("in/a.txt", "old")
    ran = subprocess.run([sys.executable, "-c", KILLED, desk.root], check=False, timeout=30)
    assert ran.returncode == -signal.SIGKILL
    remains = [name for name in desk.on_disk() if ".put-" in name]
    assert len(remains) == 1
    again = Desk(desk.root)
    assert (await again.get("in/a.txt"))["content"] == "old"
    assert await again.paths() == ["in/a.txt"]
    await again.put("b.txt", "x")
    assert again.on_disk() == ["acme.demo/b.txt", "acme.demo/in/a.txt"]


REPLACES = """
import sys
from pathlib import Path
from latticed.host.static.tree import StaticFiles, StaticQuota
tree, quota = StaticFiles(Path(sys.argv[1])), StaticQuota(files=10, total_bytes=1 << 22)
for number in range(10**9):
    tree.put("-/acme.demo", "a.txt", bytes([number % 251]) * 100_000, quota)
    if number == 3:
        print("on", flush=True)
"""


async def test_reader_of_static_file_sees_one_whole_version(desk: Desk) -> None:
    """Another process replaces the file meanwhile, and is killed."""
    tree = StaticFiles(desk.root)
    for _ in range(3):
        with processes.spawned([sys.executable, "-c", REPLACES, desk.root]) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"on\n"
            for _ in range(100):
                found = tree.read("-/acme.demo", "a.txt")
                assert found is not None
                assert len(found[0]) == 100_000
                assert len(set(found[0])) == 1
            writer.send_signal(signal.SIGKILL)
        found = tree.read("-/acme.demo", "a.txt")
        assert found is not None
        assert len(set(found[0])) == 1


async def test_cancelled_put_completes_and_frees_its_thread(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread cannot be cancelled: it finishes the write, then serves the next caller."""
    begun, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(fd: int) -> None:
        begun.set()
        go_on.wait(10)
        fsync(fd)

    monkeypatch.setattr(static_tree.os, "fsync", slow)
    waiting = [asyncio.ensure_future(desk.put("a.txt", "slow")) for _ in range(static.THREADS + 1)]
    await asyncio.to_thread(begun.wait, 10)
    for one in waiting:
        one.cancel()
    assert await asyncio.gather(*waiting, return_exceptions=True)
    go_on.set()
    assert (await asyncio.wait_for(desk.put("b.txt", "then"), 10))["ok"]
    assert (await desk.get("a.txt"))["content"] == "slow"


async def test_concurrent_static_puts_keep_within_quota(desk: Desk) -> None:
    """Of twenty concurrent puts of new files with a quota of four, four succeed."""
    outcomes = await asyncio.gather(*(desk.put(f"n{n}.txt", "x") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(one, dict) for one in outcomes) == 4
    assert {one.code for one in outcomes if isinstance(one, HostError)} == {Denial.QUOTA_EXCEEDED}
    assert len(desk.on_disk()) == 4


# HTTP answers for the ingress.


async def test_served_file_has_protective_headers(desk: Desk) -> None:
    """nosniff, a sandbox policy, revalidation on each use. Missing files and those of other plugins are not_found."""
    await desk.put("a.txt", "0123456789")
    found = await desk.service.read("acme.demo", "acme.demo", "a.txt")
    assert (found.status, found.body) == (200, b"0123456789")
    assert found.headers == {
        "Content-Type": "text/plain; charset=utf-8",
        "ETag": static.etag(b"0123456789"),
        "Accept-Ranges": "bytes",
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    for plugin, path in (
        ("acme.demo", "absent.txt"),
        ("acme.other", "a.txt"),
        ("../acme.demo", "a.txt"),
        ("", "a.txt"),
    ):
        assert (await desk.refused(desk.service.read(plugin, plugin, path))).code is Denial.NOT_FOUND


@pytest.mark.parametrize(
    ("wanted", "status", "body", "shown"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=8-", 206, b"89", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=10-20", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=3-1", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=0-1", 200, b"0123456789", None),
        ("bytes=a-b", 200, b"0123456789", None),
        ("bytes=" + "9" * 30 + "-", 200, b"0123456789", None),
        ("", 200, b"0123456789", None),
    ],
)
def test_range_request_gives_one_range_or_the_whole_file(
    wanted: str, status: int, body: bytes, shown: str | None
) -> None:
    """RFC 9110 section 14: 206, 416, or 200; with another ETag in If-Range, the whole file."""
    found = static.answer(b"0123456789", "text/plain", wanted=wanted)
    assert (found.status, found.body, found.headers.get("Content-Range")) == (status, body, shown)
    assert static.answer(b"0123456789", "text/plain", wanted=wanted, if_range='"other"').status == 200
    assert static.answer(b"0123456789", "text/plain", wanted=wanted, if_range=found.headers["ETag"]).status == status


@pytest.mark.parametrize(("header", "status"), [("{}", 304), ('"a", {}', 304), ("W/{}", 304), ("*", 304), ('"a"', 200)])
def test_if_none_match_gives_304(header: str, status: int) -> None:
    """If-None-Match compares weakly and takes precedence over Range (RFC 9110, section 13.2.2)."""
    tag = static.etag(b"text")
    found = static.answer(b"text", "text/plain", wanted="bytes=0-1", if_none_match=header.format(tag))
    assert (found.status, found.body) == ((304, b"") if status == 304 else (206, b"te"))
    assert found.headers["ETag"] == tag


@given(st.text(max_size=30), st.binary(max_size=20))
def test_any_range_header_gives_200_206_or_416(wanted: str, data: bytes) -> None:
    """The body is always a part of the file."""
    found = static.answer(data, "text/plain", wanted=wanted)
    assert found.status in {200, 206, 416}
    assert found.body in data
