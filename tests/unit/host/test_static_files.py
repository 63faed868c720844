"""Files that plugins publish: pinned, bounded, replaced whole or not at all."""

from __future__ import annotations

import asyncio
import base64
import errno
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
from latticed.model.hostcall import Denial
from latticed.settings import shapes
from tests.house import faults, processes

PLUGIN, OTHER = Caller(plugin_id="acme.demo"), Caller(plugin_id="acme.other")
LIMITS = shapes.StaticSettings(plugin_files=4, file_bytes=1_000, plugin_bytes=2_000)
QUOTA = StaticQuota(files=10, total_bytes=1 << 22)


class Desk:
    """The service, called as the broker does."""

    def __init__(self, directory: Path) -> None:
        self.limits = LIMITS
        self.shared: set[tuple[str, str]] = set()
        self.root = directory
        self.directory = directory / static.UNSIGNED
        self.publisher = ""
        self.published = True
        self.service = StaticCalls(
            directory,
            limits=lambda: self.limits,
            shared=lambda reader, owner: (reader, owner) in self.shared,
            publisher=lambda _owner: self.publisher,
            published=lambda _owner: self.published,
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


async def test_what_was_put_is_got(desk: Desk) -> None:
    """As text and base64, with type, size and validator; private on disk; missing is no error."""
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


async def test_a_long_file_is_got_in_parts(desk: Desk) -> None:
    """`bytes` is that of the whole; beyond the end there is nothing."""
    desk.limits = replace(LIMITS, file_bytes=1 << 20, plugin_bytes=1 << 20)
    data = os.urandom(static.MAX_ANSWER_BYTES + 10)
    await desk.put("big.bin", data)
    parts = [await desk.get("big.bin", offset=offset) for offset in (0, static.MAX_ANSWER_BYTES, len(data))]
    assert b"".join(base64.b64decode(part["content_base64"]) for part in parts) == data
    assert {part["bytes"] for part in parts} == {len(data)}
    part = await desk.get("big.bin", offset=1, length=2)
    assert base64.b64decode(part["content_base64"]) == data[1:3]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": "big.bin", "offset": -1}, StaticGet)


async def test_files_are_listed_and_deleted(desk: Desk) -> None:
    """By prefix, after a cursor, in order; directories that are empty then go too."""
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


async def test_long_lists_come_in_pages(desk: Desk) -> None:
    """`next` leads to the rest."""
    desk.limits = replace(LIMITS, plugin_files=1_000)
    await desk.put("a.txt")
    for number in range(static.PAGE):
        (desk.directory / "acme.demo" / f"n{number:03}.txt").write_text("")
    serve = desk._serve["static.list"]
    first = await serve(PLUGIN, ListFiles())
    assert (len(first["files"]), first["next"]) == (static.PAGE, f"n{static.PAGE - 2:03}.txt")
    second = await serve(PLUGIN, ListFiles(after=first["next"]))
    assert ([file["path"] for file in second["files"]], second["next"]) == ([f"n{static.PAGE - 1:03}.txt"], None)


async def test_plugins_are_apart_unless_shared(desk: Desk) -> None:
    """Each sees its own; another's only where the operator shares them, and only to read."""
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
async def test_hostile_paths_are_refused_everywhere(desk: Desk, path: str) -> None:
    """In no encoding does a path leave the plugin's directory, or name what is ours in it."""
    await desk.put("a.txt")
    for asked in (desk.put(path, "x"), desk.get(path), desk.delete(path)):
        assert (await desk.refused(asked)).code is Denial.BAD_PARAMS
    assert (await desk.refused(desk.service.read("acme.demo", path))).code is Denial.NOT_FOUND
    assert desk.on_disk() == ["acme.demo/a.txt"]


@given(st.text(max_size=40))
def test_a_path_that_passes_stays_beneath(path: str) -> None:
    """Whatever it is, joining and normalising it changes nothing."""
    if static.path_fault(path) is None:
        assert path.isascii()
        assert os.path.normpath(path) == path
        assert not os.path.isabs(path)
        assert ".." not in path.split("/")


@pytest.mark.parametrize(
    "path", ["a.html", "a.htm", "a.svg", "a.SVG", "a.xhtml", "a.xml", "a.txt.html", "a", "txt", "a.exe"]
)
async def test_only_listed_kinds_are_published(desk: Desk, path: str) -> None:
    """HTML and SVG are off unless the operator allows them."""
    error = await desk.refused(desk.put(path, "<script>"))
    assert error.code is Denial.BAD_PARAMS
    assert "(html, svg are off)" in error.reason
    desk.limits = replace(LIMITS, html=True, svg=True)
    if path in {"a.html", "a.htm", "a.svg", "a.SVG", "a.txt.html"}:
        assert (await desk.put(path, "<script>"))["content_type"].partition(";")[0] in {"text/html", "image/svg+xml"}
        page = await desk.service.read("acme.demo", path)
        assert page.headers["Content-Security-Policy"] == static.PAGE_POLICY
        desk.limits = LIMITS
        assert (await desk.refused(desk.service.read("acme.demo", path))).code is Denial.NOT_FOUND
    else:
        assert (await desk.refused(desk.put(path, "x"))).code is Denial.BAD_PARAMS


async def test_quotas(desk: Desk) -> None:
    """Bytes of a file, number of files, bytes together; what is refused changes nothing; replacing smaller fits."""
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
    desk.limits = replace(LIMITS, plugin_bytes=10)
    await desk.put("a.txt", "x" * 999)
    assert (await desk.refused(desk.put("a.txt", "x" * 1_000))).code is Denial.QUOTA_EXCEEDED
    desk.limits = LIMITS
    await desk.put("d.txt")
    error = await desk.refused(desk.put("e.txt"))
    assert (error.code, error.reason) == (Denial.QUOTA_EXCEEDED, "expected at most 4 files, found 4")
    await desk.put("b.txt", "again")
    await desk.delete("d.txt")
    await desk.put("e.txt", caller=OTHER)
    await desk.put("e.txt")
    assert len(await desk.paths()) == 4
    again = Desk(desk.root)  # what was counted is what is there
    assert (await again.refused(again.put("f.txt"))).code is Denial.QUOTA_EXCEEDED


async def test_a_file_and_a_directory_do_not_mix(desk: Desk) -> None:
    """Neither replaces the other."""
    await desk.put("a.txt")
    await desk.put("dir.txt/b.txt")
    for path in ("a.txt/b.txt", "dir.txt"):
        assert (await desk.refused(desk.put(path, "x"))).code is Denial.BAD_PARAMS
    assert await desk.paths() == ["a.txt", "dir.txt/b.txt"]


async def test_exactly_one_content(desk: Desk) -> None:
    """Text or base64, and base64 that is base64."""
    serve = desk._serve["static.put"]
    for fields in ({}, {"content": "", "content_base64": ""}, {"content_base64": "a"}, {"content_base64": "é"}):
        assert (await desk.refused(serve(PLUGIN, StaticPut(path="a.txt", **fields)))).code is Denial.BAD_PARAMS


@pytest.mark.parametrize("link", ["file", "directory", "owner", "pipe"])
async def test_links_are_never_followed(desk: Desk, tmp_path: Path, link: str) -> None:
    """Should one have got in, reading finds nothing and writing touches nothing outside."""
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


async def test_another_publishers_plugin_finds_no_files(desk: Desk) -> None:
    """Files are their publisher's from the moment that the id is: there is no step that a crash could leave out."""
    desk.publisher = "acme"
    await desk.put("a.txt", "old")
    desk.publisher = "a" * 128
    assert await desk.paths() == []
    await desk.put("a.txt", "new")
    desk.publisher = ""  # nobody's: unsigned
    assert await desk.paths() == []
    desk.publisher = "acme"
    assert (await desk.get("a.txt"))["content"] == "old"


async def test_files_are_served_while_their_plugin_may_have_them(desk: Desk) -> None:
    await desk.put("a.txt", "here")
    assert (await desk.service.read("acme.demo", "a.txt")).body == b"here"
    desk.published = False
    with pytest.raises(HostError) as gone:
        await desk.service.read("acme.demo", "a.txt")
    assert gone.value.code is Denial.NOT_FOUND


# What a disk may do.


@pytest.mark.root
async def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A real one: the answer is service_unavailable, nothing half written stays, and space is enough to go on."""
    place = tmp_path / "small"
    place.mkdir()
    with faults.small_disk(place, kib=128, uid=os.getuid()):
        desk = Desk(place / "static")
        desk.limits = shapes.StaticSettings()
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
async def test_any_disk_error_leaves_the_old_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    """Whichever step it hits before the rename is done; quotas count what is there."""

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


async def test_killed_between_write_and_rename_the_old_file_stays(desk: Desk) -> None:
    """What was half done is no file of the plugin's, and goes with the next put."""
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


async def test_a_reader_sees_one_version_whole_whenever_the_writer_dies(desk: Desk) -> None:
    """While another process replaces the file, and after it was killed in the midst of that."""
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


async def test_a_cancelled_put_is_whole_and_frees_its_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller leaves; the thread finishes; others get their turn."""
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


async def test_many_at_once_keep_the_quota(desk: Desk) -> None:
    """Of twenty that race for four places four get one."""
    outcomes = await asyncio.gather(*(desk.put(f"n{n}.txt", "x") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(one, dict) for one in outcomes) == 4
    assert {one.code for one in outcomes if isinstance(one, HostError)} == {Denial.QUOTA_EXCEEDED}
    assert len(desk.on_disk()) == 4


# What ingress gets.


async def test_a_file_as_an_answer(desk: Desk) -> None:
    """Never sniffed, never run, always revalidated."""
    await desk.put("a.txt", "0123456789")
    found = await desk.service.read("acme.demo", "a.txt")
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
        assert (await desk.refused(desk.service.read(plugin, path))).code is Denial.NOT_FOUND


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
def test_ranges(wanted: str, status: int, body: bytes, shown: str | None) -> None:
    """RFC 9110 section 14: one range, else the whole; a range that was meant for another version is ignored."""
    found = static.answer(b"0123456789", "text/plain", wanted=wanted)
    assert (found.status, found.body, found.headers.get("Content-Range")) == (status, body, shown)
    assert static.answer(b"0123456789", "text/plain", wanted=wanted, if_range='"other"').status == 200
    assert static.answer(b"0123456789", "text/plain", wanted=wanted, if_range=found.headers["ETag"]).status == status


@pytest.mark.parametrize(("header", "status"), [("{}", 304), ('"a", {}', 304), ("W/{}", 304), ("*", 304), ('"a"', 200)])
def test_what_is_known_already_is_not_sent_again(header: str, status: int) -> None:
    """If-None-Match compares weakly and wins over ranges."""
    tag = static.etag(b"text")
    found = static.answer(b"text", "text/plain", wanted="bytes=0-1", if_none_match=header.format(tag))
    assert (found.status, found.body) == ((304, b"") if status == 304 else (206, b"te"))
    assert found.headers["ETag"] == tag


@given(st.text(max_size=30), st.binary(max_size=20))
def test_no_range_header_breaks_it(wanted: str, data: bytes) -> None:
    """Any text gives one of three answers, and never bytes that are not there."""
    found = static.answer(data, "text/plain", wanted=wanted)
    assert found.status in {200, 206, 416}
    assert found.body in data
