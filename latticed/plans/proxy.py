"""Plans of kind `proxy`: one core, sing-box or xray, with the file that is rendered for it.

What is decided is pure and in `latticed.system.proxy`; here programs are run, files written, and the core's API asked.
The core runs by itself as an unprivileged user (`plans.proxy_runs`); a restart of the helper does not touch it.

    DIRECTORY/wanted.json     root's: the rendering, values of secrets included
    DIRECTORY/started.json    the user's: what the core was started with, without users whose time was over
    DIRECTORY/SHA256.started  root's, empty: that is what was written there; the user may have put anything in its place
    DIRECTORY/core.pid        where no unit runs it
    DIRECTORY/*.before        either of the two as it was: an undo on a full disk takes it and frees the other

A core reads its file at its start alone (sing-box takes SIGHUP for a start, xray nothing), and a start costs every
user his connections. So users who go are cut by the API, users who come back within what was approved wait, and the
core goes on with its old file for `batch_s`. Everything else starts it anew at once (docs/adr/0030).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import files, trusted_files
from latticed.model.errors import Problem
from latticed.plans.effects import finding, parsed, ran
from latticed.plans.kind import Live
from latticed.plans.proxy_api import CLOSE_S, CoreApi
from latticed.plans.proxy_runs import STARTED, Child, Unit
from latticed.system.findings import IntentRefused
from latticed.system.proxy import applied, decode, sources, usage, values
from latticed.system.proxy import check as checker
from latticed.system.proxy import intent as model
from latticed.system.proxy import narrows as narrower
from latticed.system.proxy import render as renderer
from latticed.system.proxy.intent import Core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.plans.kind import Intent, ProgramEnd, Tools
    from latticed.plans.protocol import Finding
    from latticed.plans.proxy_runs import Runs
    from latticed.system.proxy.usage import Connection

PACKAGES: Final = MappingProxyType({"sing-box": "sing-box", "xray": "xray", "setpriv": "util-linux", "ss": "iproute2"})
"""The package of each program that there has to be; of the cores the one that is configured."""
LISTEN_S: Final = 8.0
"""For a core to bind its ports after its start."""
_MAX_FILE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class _Core:
    """The core as it is, `pid` 0 for none. `started`: its file; empty where that is not what was written.
    `waiting_s`: since when it is another than what is wanted.
    """

    wanted: bytes
    started: bytes
    pid: int
    ports: tuple[sources.Socket, ...]
    waiting_s: float | None

    def ours(self) -> frozenset[tuple[str, int]]:
        return frozenset((one.transport, one.port) for one in self.ports if self.pid and self.pid in one.pids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyKind:
    """`user`: who the core runs as. `batch_s`: how long it may go on with users in its file who are gone, and without
    those who have come back. `unit`: of systemd, which runs the core; empty for a child of the helper.
    """

    directory: str = "/run/latticed-proxy"
    user: str = "latticed-proxy"
    batch_s: float = 60.0
    unit: str = ""
    # Of the process that this kind is used in: no part of what it is.
    _api: CoreApi = field(default_factory=CoreApi, repr=False, compare=False)

    @property
    def name(self) -> str:
        return "proxy"

    @property
    def target(self) -> str:
        return f"the proxy core of {self.directory}"

    @property
    def programs(self) -> Mapping[str, str]:
        return {
            "sing-box": "/usr/bin/sing-box",
            "xray": "/usr/bin/xray",
            **self._runs.programs,
            "setpriv": "/usr/bin/setpriv",
            "ss": "/usr/bin/ss",
        }

    # Pure

    def secrets(self, intent: Intent) -> Mapping[str, str]:
        """Credentials of users and keys of inbounds; none for an intent that is refused anyway."""
        try:
            return model.references(decode.read(intent))
        except IntentRefused:
            return {}

    def check(self, intent: Intent, live: Live | None, source: str) -> tuple[Finding, ...]:
        """As `proxy.check` has them."""
        del source
        try:
            read = decode.read(intent)
        except IntentRefused as refused:
            return tuple(finding(one) for one in refused.findings)
        facts = None if live is None else sources.from_plain(live.facts)
        return tuple(finding(one) for one in checker.check(read, facts))

    def render(self, intent: Intent, live: Live | None, secrets: Mapping[str, str]) -> bytes:
        del live
        return renderer.render(decode.read(intent), secrets)

    def narrows(self, approved: Intent, new: Intent, *, now_s: int) -> bool:
        """See `proxy.narrows`. A user whose time is over is in no file, whatever an intent says (`commit`)."""
        del now_s
        return narrower.narrows(decode.read(approved), decode.read(new))

    def holds(self, rendering: bytes, live: Live) -> bool:
        """Whether the core is what was rendered, but for users who go or come back: those make it `unfinished`."""
        return bool(live.facts["sound"]) and live.facts["rendering"] == _digest(rendering)

    # On the host

    def observe(self, tools: Tools) -> Live:
        """The core, who is connected, and the ports of others.

        Facts: as `proxy.sources.plain` has them, `running`, `waiting_s`, `connections`: `{id, user, source, up_bytes,
        down_bytes}` of each, `ended`: the same of some that are no more, `untold`: by user how many more of both there
        are, where they are too many for one answer, `answers`: whether the core's API did, where it has one,
        `rendering`: digest of what is wanted, `sound`: whether the core has that as its file, but for users who go or
        come back, `coming`: names of the latter, `unfinished`: as `Live`.
        """
        found = self._seen(tools)
        facts = sources.plain(sources.facts(found.ports, found.ours()))
        told = self._connections(found)
        sound, unfinished, coming = self._judged(found, told)
        listed, untold = usage.told(told or (), usage.MAX_TOLD)
        running = bool(found.pid)
        facts |= {"running": running, "waiting_s": found.waiting_s, "answers": told is not None}
        facts |= {"rendering": _digest(found.wanted), "sound": sound, "unfinished": unfinished}
        facts |= {"coming": sorted(coming), "untold": untold}
        for name, is_open in (("connections", True), ("ended", False)):
            facts[name] = [_told(one) for one in listed if one.is_open is is_open]
        return Live(
            facts=facts,
            basis=_basis(found.wanted, running=running),
            text=renderer.text(values.redacted(found.wanted)).decode("ascii") if found.wanted else "",
            unfinished=unfinished,
        )

    def _judged(self, found: _Core, told: tuple[Connection, ...] | None) -> tuple[bool, bool, frozenset[str]]:
        """`sound`, `unfinished` and `coming` of the facts."""
        nobody = frozenset[str]()
        if not found.wanted:
            return not found.pid, False, nobody
        wanted = applied.read(found.wanted)
        config = applied.config(wanted, _now_s())
        names = applied.everybody(wanted.core, config)
        if not names:
            # The last user's time may be over.
            return True, bool(found.pid), nobody
        if not found.pid or self._api.hangs(found.pid) or not found.started:
            return False, False, nobody
        moved = applied.moves(wanted.core, found.started, config)
        if moved is None:
            return False, False, nobody
        back = any(one.is_open and one.user and one.user not in names for one in told or ())
        due = found.waiting_s is None or found.waiting_s >= self.batch_s
        return True, back or (bool(moved.gone | moved.come) and due), moved.come

    def validate(self, rendering: bytes, tools: Tools) -> None:
        """Have the core check its file, as the user that it runs as: it has to be able to read certificates."""
        wanted = applied.read(rendering)
        config = applied.config(wanted, _now_s())
        words = ("check", "-c", "stdin") if wanted.core is Core.SING_BOX else ("run", "-test", "-config", "stdin:")
        program = tools.path(str(wanted.core))
        _run(tools, "setpriv", *self._as_user(), program, *words, stdin=config)

    def snapshot(self, tools: Tools) -> bytes:
        """The rendering of now, secrets and all; empty for none."""
        return self._seen(tools).wanted

    def commit(self, rendering: bytes, tools: Tools, *, may_wait: bool = False, live: Live | None = None) -> None:
        """The core with what is rendered, but for users whose time is over; those who come back `may_wait`."""
        del live
        self._make(rendering, tools, may_wait=may_wait)

    def self_check(self, rendering: bytes, tools: Tools) -> None:
        """That the core runs and has bound every port of its file, as nobody else has."""
        wanted = applied.read(rendering)
        config = applied.config(wanted, _now_s())
        runs = bool(applied.everybody(wanted.core, config))
        ports = applied.ports(wanted.core, config) if runs else frozenset()
        until = time.monotonic() + LISTEN_S
        while True:
            found = self._seen(tools)
            missing = ports - found.ours()
            if not missing and bool(found.pid) == runs:
                return
            if runs and not found.pid and self._runs.ended(tools):
                hint = f"look at its ports, and at what {self.user} may read"
                raise Problem("apply_failed", "the core ended after its start", hint)
            if time.monotonic() > until:
                told = ", ".join(f"{port}/{transport}" for transport, port in sorted(missing))
                raise Problem("apply_failed", f"the core has not bound {told or 'nothing, and still runs'}")
            time.sleep(0.05)

    def restore(self, snapshot: bytes, tools: Tools) -> None:
        """As `commit`: a snapshot is the rendering of before."""
        self._make(snapshot, tools)

    # Files and the program

    def _make(self, rendering: bytes, tools: Tools, *, may_wait: bool = False) -> None:
        """Have the core as this rendering says now; none for an empty one, or one that lets nobody in."""
        found = self._seen(tools)
        if not found.started:
            # It runs with whatever it likes; and what lies there may take all the room that there is.
            if found.pid:
                self._stop(found, tools)
                found = replace(found, pid=0)
            self._remove(STARTED)
        wanted = applied.read(rendering) if rendering else None
        config = applied.config(wanted, _now_s()) if wanted else b""
        if rendering:
            self._write("wanted.json", rendering, owner=0)
        if wanted is None or not applied.everybody(wanted.core, config):
            self._stop(found, tools)
            self._set_aside(STARTED)
            self._remove("waiting")
            if not rendering:
                self._remove("wanted.json", "wanted.json.before", "started.json.before", *self._marks())
            return
        if self._goes_on(found, wanted.core, config, may_wait=may_wait):
            return
        self._stop(found, tools)
        self._write(STARTED, config, owner=self._account().pw_uid)
        mark = _mark(config)
        self._write(mark, b"", owner=0)
        self._remove("waiting", *(self._marks() - {mark}))
        self._start(wanted.core, tools)

    def _goes_on(self, found: _Core, core: Core, config: bytes, *, may_wait: bool) -> bool:
        """Whether the core that runs will do for now; users who are gone are cut."""
        until = time.monotonic() + CLOSE_S
        told = self._connections(found)
        same = found.pid and found.started and applied.core_of(found.started) is core
        moved = applied.moves(core, found.started, config) if same else None
        if moved is None:
            return False
        # One that does not answer is started anew where users have to go, whatever that costs the others.
        if told is None and (moved.gone or self._api.hangs(found.pid)):
            return False
        if found.started == config:
            self._remove("waiting")
            return True
        if (moved.come and not may_wait) or (moved.gone and not _api_of(found.wanted)):
            return False
        if (found.waiting_s or 0.0) >= self.batch_s:
            return False
        if found.waiting_s is None:
            self._write("waiting", b"", owner=0)
        ids = (one.id for one in told or () if one.is_open and one.user in moved.gone)
        return self._api.closed(_api_of(found.wanted), found.pid, ids, until)

    def _connections(self, found: _Core) -> tuple[Connection, ...] | None:
        """Who is connected, or was just before; nobody where it has no API, or has not bound it yet.

        None where it does not answer.
        """
        service = _api_of(found.wanted) if found.pid else {}
        if not service or ("tcp", service["listen_port"]) not in found.ours():
            return ()
        return self._api.connections(service, found.pid)

    def _stop(self, found: _Core, tools: Tools) -> None:
        """End the core; one that answers nothing is not asked to end."""
        self._runs.stop(tools, at_once=self._api.is_silent(found.pid))

    def _start(self, core: Core, tools: Tools) -> None:
        started = str(Path(self.directory, STARTED))
        words = ("run", "-c", started) if core is Core.SING_BOX else ("run", "-config", started)
        # setpriv becomes the core: the pid stays.
        self._runs.start((tools.path("setpriv"), *self._as_user(), tools.path(str(core)), *words), tools)

    @property
    def _runs(self) -> Runs:
        if self.unit:
            return Unit(self.unit, self.user)
        return Child(Path(self.directory, "core.pid"), self.user)

    def _seen(self, tools: Tools) -> _Core:
        wanted = self._read("wanted.json")
        started = self._started(wanted)
        pid = self._runs.pid(tools)
        ports = parsed(sources.sockets, _run(tools, "ss", "-Hlntup").stdout)
        waiting_s = None
        with contextlib.suppress(FileNotFoundError):
            waiting_s = time.time() - Path(self.directory, "waiting").stat().st_mtime
            if waiting_s < 0:  # the clock was set back, and nobody is to wait until it has caught up
                waiting_s = self.batch_s
        return _Core(wanted, started, pid, ports, waiting_s)

    def _as_user(self) -> tuple[str, ...]:
        account = self._account()
        bound = "+net_bind_service"
        return (
            *(f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--no-new-privs"),
            # Ports below 1024, and nothing else of root's.
            *(f"--inh-caps=-all,{bound}", f"--ambient-caps=-all,{bound}", f"--bounding-set=-all,{bound}"),
            "--",
        )

    def _account(self) -> pwd.struct_passwd:
        try:
            return pwd.getpwnam(self.user)
        except KeyError:
            hint = f"useradd --system --no-create-home --shell /usr/sbin/nologin {self.user}"
            raise Problem("tool_missing", f"there is no user {self.user} for the core", hint) from None

    def _read(self, name: str) -> bytes:
        try:
            return files.read_at_most(Path(self.directory, name), _MAX_FILE_BYTES)
        except FileNotFoundError:
            return b""

    def _started(self, wanted: bytes) -> bytes:
        """The core's file where it is what was written, or what would be now; else nothing is read from it."""
        with contextlib.suppress(OSError, ValueError):
            found = self._read(STARTED)
            if _mark(found) in self._marks():
                return found
            if wanted and found == applied.config(applied.read(wanted), _now_s()):
                # A version before left no mark: without one it would be drift when the first user's time is over.
                with contextlib.suppress(OSError, Problem):
                    self._write(_mark(found), b"", owner=0)
                return found
        return b""

    def _marks(self) -> set[str]:
        return {one.name for one in Path(self.directory).glob("*.started")}

    def _write(self, name: str, data: bytes, *, owner: int) -> None:
        directory = Path(self.directory)
        directory.mkdir(mode=0o711, exist_ok=True)
        try:
            # In somebody else's the core could be given another file, and root led to one.
            trusted_files.check_path(os.path.realpath(directory), owners=frozenset({0}))
        except trusted_files.ForeignFile as error:
            raise Problem("apply_failed", f"apply.proxy.directory: {error}") from error
        path, before = directory / name, self._before(name)
        # What is there is not written: an undo has to succeed on a full disk, too.
        if not (data and _holds(path, data)):
            if data and _holds(before, data):
                before.replace(path)
            else:
                if data:
                    before.unlink(missing_ok=True)
                    with contextlib.suppress(FileNotFoundError):
                        os.link(path, before)
                files.replace(path, data, mode=0o600)
        path.chmod(0o600)  # whatever its user has made of it
        os.chown(path, owner, -1, follow_symlinks=False)

    def _before(self, name: str) -> Path:
        return Path(self.directory, f"{name}.before")

    def _set_aside(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(self.directory, name).replace(self._before(name))

    def _remove(self, *names: str) -> None:
        for name in names:
            Path(self.directory, name).unlink(missing_ok=True)


def _told(one: Connection) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("id", "user", "source", "up_bytes", "down_bytes")}


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file is this, whatever somebody else has put there."""
    with contextlib.suppress(OSError, ValueError):
        return files.read_at_most(path, len(data)) == data
    return False


def _mark(started: bytes) -> str:
    return f"{_digest(started)}.started"


def _api_of(rendering: bytes) -> dict[str, Any]:
    """The API of a rendering: the core's own file is the core's to change."""
    services: list[dict[str, Any]] = json.loads(rendering)["config"].get("services", []) if rendering else []
    return services[0] if services else {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


def _basis(rendering: bytes, *, running: bool) -> bytes:
    return json.dumps({"rendering": _digest(rendering), "running": running}, sort_keys=True).encode("ascii")


def _run(tools: Tools, program: str, *arguments: str, stdin: bytes = b"") -> ProgramEnd:
    return ran(tools, PACKAGES, program, *arguments, stdin=stdin)


def _now_s() -> int:
    return int(time.time())
