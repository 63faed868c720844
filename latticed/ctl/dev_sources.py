"""What `latticectl dev` listens to: changes of the source, what the plugin does and writes, and what is typed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, TYPE_CHECKING, Final

from latticed.bundle.refusal import ARTIFACT
from latticed.ctl import replies, stream
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from watchdog.events import FileSystemEvent

    from latticed.ctl.trial import Trial

IGNORED: Final = frozenset({"__pycache__", "node_modules", "build", "dist", "target", "zig-out"})
"""Directories that tools fill and nobody writes in by hand; so are all whose name begins with a dot."""
QUIET_S: Final = 0.05
"""A change is taken once nothing more came for so long: editors write in several steps."""
LOOK_S: Final = 2.0
"""How often the source is looked at without being told of a change: the kernel's queue may overflow (inotify(7))."""
MOST_FILES: Final = 20_000
_LINE_BYTES: Final = 4 << 20
_WAIT_S: Final = 20
BUILD_S: Final = 600.0
_TOLD_BYTES: Final = 8_000


class News:
    """What happened, in order: ("changed", ""), ("said", a line), ("typed", a line), ("ended", "")."""

    def __init__(self) -> None:
        self._found: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._later: list[tuple[str, str]] = []
        self.absorbed = ""
        """A fingerprint that a build left which failed, or changed nothing of the bundle: it sets off no other one."""

    def put(self, kind: str, what: str = "") -> None:
        """Add one; of any thread."""
        self._found.put((kind, what))

    def next(self) -> tuple[str, str]:
        """The oldest one; waits for it. Changes that came at once are one."""
        found = self._later.pop(0) if self._later else self._found.get()
        if found[0] == "changed":
            self._later += [one for one in self._waiting() if one[0] != "changed"]
        return found

    def answer(self) -> str:
        """The line that is typed next; what comes before it stays. Empty when no more will come."""
        while True:
            found = self._found.get()
            if found[0] == "typed":
                return found[1]
            self._later.append(found)
            if found[0] == "ended":
                return ""

    def _waiting(self) -> Iterator[tuple[str, str]]:
        """All that has come."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._found.get_nowait()


class Builds:
    """Runs the author's command, and tells apart what it writes and what the author writes meanwhile.

    Files that an earlier run wrote are the command's own, until they change while it does not run. `seen` is the
    fingerprint after the last run.
    """

    def __init__(self, source: Path, command: str | None) -> None:
        self.source = source
        self.command = command
        self._kept = self._listing()
        self.seen = fingerprint(self._kept)
        self._own: set[str] = set()
        self._others: set[str] = set()

    def run(self) -> None:
        """Problem build_failed."""
        before = self._listing()
        try:
            build(self.source, self.command)
        finally:
            after = self._listing()
            self._own -= _changed(self._kept, before)
            self._others = _changed(before, after) - self._own
            self._own |= self._others
            self._kept, self.seen = after, fingerprint(after)

    def unchanged(self) -> bool:
        """Whether all is as the last run left it. So it is where what was told of is what that run itself wrote."""
        return fingerprint(self._listing()) == self.seen

    def wrote_others(self) -> bool:
        """Whether the last run changed files that no run before it did: they may be the author's, and need another."""
        return bool(self._others)

    def _listing(self) -> dict[str, str]:
        return listing(self.source, built=self.command is not None)


def build(source: Path, command: str | None) -> None:
    """Run the command in the source's directory, by sh; Problem with the end of what it wrote when it fails."""
    if command is None:
        return
    # Not a pipe: what the command leaves running would hold it open.
    with tempfile.TemporaryFile() as said:
        try:
            status = _built(source, command, said)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Problem("build_failed", f"{command[:200]}: {error}") from error
        if status:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _TOLD_BYTES))
            told = said.read().decode("utf-8", "replace").strip()[-2_000:]
            raise Problem("build_failed", f"{command[:200]} ended with {status}: {told or 'it said nothing'}")


def _built(source: Path, command: str, said: IO[bytes]) -> int:
    """The command's exit status; it writes to `said`. OSError, TimeoutExpired; ended with all that it started then."""
    from latticed.ctl import trial

    process: subprocess.Popen[bytes] | None = None
    try:
        with trial.undisturbed():
            process = subprocess.Popen(  # noqa: S602 - the author's own command
                command,
                shell=True,
                cwd=source,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process.wait(BUILD_S)
    except BaseException:  # interrupted, or too late
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise


@contextlib.contextmanager
def opened(builds: Builds, own: Trial) -> Iterator[News]:
    """The news of a source and its plugin while the block runs, beginning with changes since the last build."""
    from watchdog.events import FileSystemEventHandler
    from watchdog.observers import Observer

    class Teller(FileSystemEventHandler):
        """Called in watchdog's thread."""

        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type not in {"opened", "closed_no_write"}:  # looking is no change
                told.set()

    news = News()
    told = threading.Event()
    observer = Observer()
    # Where the kernel has no watch left (fs.inotify.max_user_watches), the look every LOOK_S finds changes.
    with contextlib.suppress(OSError):
        observer.schedule(Teller(), str(builds.source), recursive=True)
        observer.start()
    told.set()
    first, built = builds.seen, builds.command is not None
    for work in (
        lambda: _watch(builds.source, told, news, first, built=built),
        lambda: _follow_calls(own, news),
        lambda: _follow_lines(own, news),
        lambda: _read_typed(news),
        lambda: _wait_for_reader_gone(news),
    ):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield news
    finally:
        if observer.is_alive():
            observer.stop()


def listing(source: Path, *, built: bool) -> dict[str, str]:
    """Size, time and inode of each file that is written by hand, by its path; links are not followed.

    With `built` the artifact is left out. Of more than MOST_FILES files the first ones count.
    """
    found: dict[str, str] = {}
    for directory, below, names in os.walk(source):
        below[:] = sorted(one for one in below if one not in IGNORED and not one.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or (built and name == ARTIFACT) or len(found) == MOST_FILES:
                continue
            path = os.path.join(directory, name)
            with contextlib.suppress(OSError):
                seen = os.lstat(path)
                found[path] = f"{seen.st_size} {seen.st_mtime_ns} {seen.st_ino}"
    return found


def fingerprint(found: Mapping[str, str]) -> str:
    """A digest of a listing."""
    lines = "".join(f"{path}\0{seen}\n" for path, seen in found.items())
    return hashlib.blake2b(lines.encode("utf-8", "replace")).hexdigest()


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Paths that were made, written or removed."""
    return {path for path, _ in before.items() ^ after.items()}


def _watch(source: Path, told: threading.Event, news: News, last: str, *, built: bool) -> None:
    """Tell of each change of the fingerprint, once the source is quiet."""
    while True:
        if told.wait(LOOK_S):
            told.clear()
            while told.wait(QUIET_S):
                told.clear()
        found = fingerprint(listing(source, built=built))
        if found != last:
            last = found
            # A build that writes the same files each time would set off the next one for ever.
            if found != news.absorbed:
                news.put("changed")


def _follow_calls(own: Trial, news: News) -> None:
    """Tell of each host call of the plugin with its decision, and of whatever else is refused."""
    with contextlib.suppress(Problem):
        for sent in stream.follow(own.client(), None, {"host_calls": "1"}, note=lambda _: None):
            row = replies.mapping(json.loads(sent.data or "{}"), "event")
            if row.get("actor") == f"plugin:{own.plugin_id}" or row.get("decision") == "deny":
                label = "call" if row.get("action") == "host.call" else str(row.get("action"))
                words = (row.get(name) for name in ("target", "decision", "code", "reason"))
                news.put("said", f"{label:<6} " + " ".join(str(word) for word in words if word))


def _follow_lines(own: Trial, news: News) -> None:
    """Tell what the plugin writes."""
    after = 0
    with contextlib.suppress(Problem):
        while True:
            query: dict[str, str | int | None] = {"after": after, "wait_s": _WAIT_S}
            found = replies.mapping(own.client().get("plugins", "by-id", own.plugin_id, "logs", query=query), "logs")
            after = int(found.get("next") or 0)
            for row in replies.rows(found.get("lines"), "list of lines"):
                news.put("said", f"{row.get('stream') or '':<6} {row.get('text') or ''}")


def _wait_for_reader_gone(news: News) -> None:
    """Tell when nobody reads what dev prints any more (`dev | head -1`): nothing may be printed for long that fails."""
    poller = select.poll()
    # Nothing is asked for but what comes unasked: an error or a hang-up. For a file that never comes (poll(2)).
    poller.register(1, 0)
    with contextlib.suppress(OSError):
        if poller.poll():
            news.put("ended")


def _read_typed(news: News) -> None:
    """Tell each line of stdin. Its end ends dev on a terminal; elsewhere nothing more is typed."""
    part = b""
    # Not through sys.stdin: a thread that waits in its buffer keeps the interpreter from ending.
    with contextlib.suppress(OSError):
        while data := os.read(0, 65_536):
            *lines, part = (part + data).split(b"\n")
            for line in lines:
                news.put("typed", line.decode("utf-8", "replace"))
            if len(part) > _LINE_BYTES:
                part = b""
    if sys.stdin is not None and sys.stdin.isatty():
        news.put("ended")
