"""A daemon for one bundle that is being written, in a private directory; nothing of either stays.

    with trial.opened(Path("acme.demo"), os.environ) as own:
        view = own.activated({"accept": ["http:egress"]})
        reply = own.client().post("plugins", "by-id", own.plugin_id, "invoke", body={"action": "greet"})

It verifies, confines and records as any other: the bundle is a copy, signed with a key that is made here and never
written down, and its trust policy knows that key alone. Nothing of the machine's own daemon is read or changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.bundle import decode as manifests
from latticed.bundle import pack, requirements, write
from latticed.bundle.read import ReadLimits
from latticed.bundle.refusal import ARTIFACT
from latticed.client.control import READ_S, ApiRefusal, ControlClient
from latticed.ctl import ask, decode, offline, policy_file, replies, sign
from latticed.kit import files
from latticed.model.errors import Problem
from latticed.trust import key_files, payload, policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed import wire

SOURCE: Final = "src"
"""A directory of this name in a bundle is packed to its artifact (`latticectl pack`)."""
REQUIREMENTS: Final = "requirements.txt"
"""A file of this name beside it names packages of others that are packed too (`latticectl pack --requirements`)."""
BUNDLE: Final = "bundle"
"""The name of the copy in the daemon's plugin directory."""
PUBLISHER: Final = "dev.local"
"""The publisher where a manifest names none."""
START_S: Final = 120.0
"""For the daemon to be ready, and for it to see a bundle that was put in its directory: a machine may be busy."""
END_S: Final = 10.0
_PAUSE_S: Final = 0.02
_NAME: Final = "latticed-trial-"
_LOCK: Final = "lock"
_SOCKET_PATH_BYTES: Final = 107  # unix(7): sun_path less its NUL
_FOREIGN: Final = (
    *("LATTICE", "LISTEN_", "NOTIFY_", "WATCHDOG_", "CREDENTIALS_DIRECTORY", "JOURNAL_STREAM", "INVOCATION_ID"),
    *("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY"),
)
"""How variables begin by which a service manager, or an operator, tells a daemon where things are."""
_PR_SET_PDEATHSIG: Final = 1
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Trial:
    """A daemon that is ready, and the bundle in its plugin directory."""

    def __init__(self, home: Path, source: Path, plugin_id: str, key: Ed25519PrivateKey, publisher: str) -> None:
        self.home = home
        self.source = source
        self.plugin_id = plugin_id
        self.socket = home / "run" / "control.sock"
        self._key = key
        self._publisher = publisher
        self._last: tuple[dict[str, Any], bytes] | None = None
        self._identity = ""  # of the bundle that lies in the plugin directory

    def client(self, *, read_s: float = READ_S) -> ControlClient:
        """A client of this daemon."""
        return ControlClient(str(self.socket), read_s=read_s)

    def put(self) -> bool:
        """Sign a copy of the source and put it in the plugin directory in one step.

        False when it is what was put there last. Problem for what cannot be signed: what was there stays then.
        """
        raw, artifact = _read(self.source)
        if self._last == (raw, artifact):
            return False
        if raw.get("id") != self.plugin_id:
            found = f"expected the plugin {self.plugin_id}, found {str(raw.get('id'))[:150]!r} in its manifest"
            raise Problem("usage", found, "end this and begin anew: one daemon is for one plugin")
        staged, place = self.home / "staged", self.home / "plugins" / BUNDLE
        shutil.rmtree(staged, ignore_errors=True)
        with _writing(self.home.parent):
            write.write_bundle(staged, write.render_manifest(raw), artifact)
        try:
            sign.sign_bundle(str(staged), self._key, self._publisher)
        except Problem as problem:
            raise Problem(
                problem.code, problem.reason.replace(str(staged), str(self.source)), problem.hint
            ) from problem
        signed = manifests.decode(offline.manifest_bytes(str(staged)))
        if place.exists():
            files.exchange(staged, place)
        else:
            staged.rename(place)
        self._last, self._identity = (raw, artifact), payload.identity(payload.signing_payload(*signed))
        return True

    def view(self) -> wire.PluginView:
        """The plugin, once the daemon has verified what was put: it is what is accepted, or the candidate.

        Problem with the verdict's code when it refuses it.
        """
        until = time.monotonic() + START_S
        judged = False
        while time.monotonic() < until:
            with contextlib.suppress(ApiRefusal):
                about = ask.about(self.client(), self.plugin_id)
                view = decode.plugin(replies.mapping(about.get("plugin"), "plugin"))
                there = view.candidate.identity if view.candidate else view.available and about.get("identity")
                if there == self._identity:
                    return view
            if not judged:
                self._check_refused()
                judged = True
            time.sleep(_PAUSE_S)
        raise Problem("unreachable", f"expected the daemon to see the bundle within {START_S:g} s, found it did not")

    def _check_refused(self) -> None:
        """Problem with the verdict's code, if the bundle that lies there is refused.

        It is judged now: the daemon's list of what is refused may still have the one before.
        """
        verdict = replies.mapping(self.client().post("plugins", "verify", body={"name": BUNDLE}), "verdict")
        if verdict.get("code"):
            raise Problem(*(str(verdict.get(name) or "") for name in ("code", "reason", "hint")))

    def activated(self, agreed: Mapping[str, Any], prepare: Callable[[], None] = lambda: None) -> wire.PluginView:
        """Install and start it with these consents (`consent.given`), and wait until it is armed.

        `prepare` is called in between, once it may be configured. Problem with the code of its last error when it could
        not be, or of the refusal.
        """
        client = self.client(read_s=START_S)
        body = {"id": self.plugin_id, "status": "installed", "already_so": True}
        client.post("plugins", "lifecycle", body={**body, **agreed})
        prepare()
        plain = client.post("plugins", "lifecycle", body={"id": self.plugin_id, "status": "active"})
        return self.armed(decode.plugin(plain))

    def armed(self, view: wire.PluginView) -> wire.PluginView:
        """The active plugin once it is armed; Problem when it failed, or did neither in START_S seconds."""
        until = time.monotonic() + START_S
        while view.runtime.state not in {"armed", "failed"} and time.monotonic() < until:
            time.sleep(_PAUSE_S)
            view = self.view()
        if view.runtime.state == "armed":
            return view
        error = view.runtime.last_error
        if error is None:
            raise Problem("start_timeout", view.runtime.message or f"{self.plugin_id} is still being started")
        raise Problem(error.code, f"{self.plugin_id} could not be armed: {error.message}")

    def lines(self) -> list[str]:
        """What the plugin has written so far: its stderr and its log lines, the newest 1,000."""
        found = replies.mapping(self.client().get("plugins", "by-id", self.plugin_id, "logs"), "logs")
        return [str(row.get("text") or "") for row in replies.rows(found.get("lines"), "list of lines")]


@contextlib.contextmanager
def opened(source: Path, environ: Mapping[str, str]) -> Iterator[Trial]:
    """A daemon with the bundle `source`, ready; ended, and its directory removed, at the end of the block.

    Problem when the bundle cannot be signed, or the daemon does not start.
    """
    raw, _ = _read(source)
    plugin_id, publisher = str(raw.get("id")), str(raw.get("publisher") or PUBLISHER)
    with interrupted_once(), _private(environ) as home:
        key = key_files.generate()
        known = {publisher: policy.Publisher(keys=(key_files.public_text(key),), ids=(plugin_id,))}
        with _writing(home.parent):
            for name in ("plugins", "state", "run"):
                (home / name).mkdir(mode=0o700)
            policy_file.write(home / "trust.json", policy.TrustPolicy(publishers=known))
            (home / "latticed.toml").write_text(_settings(home), encoding="utf-8")
        own = Trial(home, source, plugin_id, key, publisher)
        own.put()
        with _daemon(home, environ):
            yield own


def _read(source: Path) -> tuple[dict[str, Any], bytes]:
    """The manifest's object and the artifact of the bundle that is being written; Problem.

    The artifact is made of the Python in the directory `src`, where there is any, and of what `requirements.txt` names.
    """
    raw = offline.manifest(str(source))
    if raw.get("type") == "system" and any((source / SOURCE).glob("*.py")):
        tree = pack.tree(source / SOURCE)
        if (source / REQUIREMENTS).exists():
            tree = requirements.joined(tree, _required(source / REQUIREMENTS))
        return raw, pack.zipapp(tree, interpreter=pack.INTERPRETER)
    try:
        with (
            files.closing(files.open_directory(source)) as directory,
            files.closing(files.open_file(ARTIFACT, beneath=directory)) as file,
        ):
            return raw, files.read_open(file, ReadLimits().artifact_bytes)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Problem("artifact_missing", f"cannot read {source / ARTIFACT}: {why}") from error


def _required(path: Path) -> requirements.Packed:
    """What the file names; fetched again only when it has changed, so that a reload does not wait for pip."""
    stamp = os.stat(path)
    return _fetched(path, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=1)
def _fetched(path: Path, _mtime_ns: int, _size: int) -> requirements.Packed:
    return requirements.packed(path)


def _settings(home: Path) -> str:
    """The settings of a daemon in this directory, as TOML."""
    paths = {"plugin_dir": "plugins", "state_dir": "state", "runtime_dir": "run", "trust": "trust.json"}
    lines = [f"{name} = {json.dumps(str(home / path), ensure_ascii=False)}" for name, path in paths.items()]
    # The root helper applies plans of the machine's own daemon, and for root those of any.
    lines += ["[apply]", f"socket = {json.dumps(str(home / 'no-helper.sock'), ensure_ascii=False)}"]
    # Its pages are served at a free port, never at that of the machine's own daemon.
    lines += ["[http]", 'listen = "127.0.0.1:0"']
    # Nobody waits here for another version to prove itself, or for requests of others.
    return "\n".join(
        [*lines, "[upgrade]", "gate_s = 0.0", "[supervision]", "drain_s = 0.0", "[watch]", "quiet_s = 0.02", ""]
    )


@contextlib.contextmanager
def _private(environ: Mapping[str, str]) -> Iterator[Path]:
    """A new directory that nobody else can enter, removed at the end; those that a killed latticectl left go first."""
    parent = _parent(environ)
    _sweep(parent)
    home, lock = Path(), -1
    try:
        with undisturbed(), _writing(parent):
            home, lock = _made(parent)
        yield home
    finally:
        if lock >= 0:
            try:
                shutil.rmtree(home, ignore_errors=True)
            finally:  # an interruption, of which there is one (`interrupted_once`), may have cut the first short
                shutil.rmtree(home, ignore_errors=True)
            os.close(lock)


def _parent(environ: Mapping[str, str]) -> Path:
    """Where the directory is made: the first place with a short path that this user may write in; Problem."""
    longest = len(f"/{_NAME}12345678/run/control.sock")
    named = (environ.get("TMPDIR"), environ.get("XDG_RUNTIME_DIR"))
    wanted = (*named, tempfile.gettempdir(), "/tmp")  # noqa: S108 - mkdtemp makes it ours
    for one in wanted:
        short = one and len(os.fsencode(os.path.abspath(one))) + longest <= _SOCKET_PATH_BYTES
        if one and short and os.path.isdir(one) and os.access(one, os.W_OK | os.X_OK):
            return Path(os.path.abspath(one))
    expected = "expected a directory for temporary files with a short path that you may write in"
    raise Problem("io_error", f"{expected}, found none", "set TMPDIR")


def _made(parent: Path) -> tuple[Path, int]:
    """A new directory and the descriptor of its lock, which is held."""
    while True:
        home = Path(tempfile.mkdtemp(prefix=_NAME, dir=parent))
        lock = -1
        try:
            lock = os.open(home / _LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock).st_nlink:
                return home, lock
        except OSError:
            shutil.rmtree(home, ignore_errors=True)
            raise
        os.close(lock)  # another latticectl that clears up (`_sweep`) found it before it was locked


@contextlib.contextmanager
def _writing(parent: Path) -> Iterator[None]:
    """Have what the disk refuses be a Problem that says where."""
    try:
        yield
    except OSError as error:
        why = f"cannot write in {parent}: {error.strerror or error}"
        raise Problem("io_error", why, "make room there, or set TMPDIR to another directory") from error


def _sweep(parent: Path) -> None:
    """Remove directories of ours whose latticectl is gone (SIGKILL): their lock is free."""
    for home in parent.glob(f"{_NAME}*"):
        with contextlib.suppress(OSError):
            if home.is_symlink() or home.stat().st_uid != os.geteuid():
                continue
            with files.closing(os.open(home / _LOCK, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home)


@contextlib.contextmanager
def _daemon(home: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """A daemon in this directory while the block runs; Problem when it is not ready in time, with its own reason."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_FOREIGN)}
    command = [sys.executable, "-P", "-m", "latticed.daemon", "--config", str(home / "latticed.toml")]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        (home / "daemon.log").open("wb") as log,
    ):
        notified.bind(str(home / "notify"))
        notified.settimeout(_PAUSE_S)
        process: subprocess.Popen[bytes] | None = None
        try:
            with undisturbed():
                process = subprocess.Popen(  # noqa: S603 - our own words
                    command,
                    env={**kept, "NOTIFY_SOCKET": str(home / "notify")},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for latticectl, which ends it
                    preexec_fn=_end_with_parent,  # noqa: PLW1509 - latticectl has no threads yet
                )
            _until_ready(process, notified, home / "daemon.log")
            yield
        finally:
            try:
                _end(process)
            finally:
                _end(process)  # as in `_private`


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """End the daemon and wait until it is gone."""
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """Have the kernel end this process when latticectl is gone, even killed (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _until_ready(process: subprocess.Popen[bytes], notified: socket.socket, log: Path) -> None:
    """Wait for the daemon's READY=1; Problem when it ends, or START_S seconds pass, without one."""
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notified.recv(4_096).split(b"\n"):
                return
    if process.poll() is None:
        raise Problem("unreachable", f"expected a daemon to try it in to start within {START_S:g} s, found it did not")
    last = log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    hint = "" if last else f"is there room in {log.parent.parent}? TMPDIR names another directory"
    raise Problem("io_error", f"a daemon to try it in did not start: {last[-500:] or 'it said nothing'}", hint)


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Have the first SIGINT, SIGTERM or SIGHUP end the block as Ctrl-C does, so that what it made is removed.

    Those that follow are ignored: they would leave the daemon or its directory behind.
    """

    def interrupt(*_: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        if _hold.active:
            _hold.pending = True
            return
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Have an interruption (`interrupted_once`) wait until the block is over: what it begins is known then, and ended.

    Not by a mask of signals: that of one thread stops nothing while there are others.
    """
    _hold.active = True
    try:
        yield
    finally:
        _hold.active = False  # from here on an interruption is raised by its handler
        pending, _hold.pending = _hold.pending, False
    if pending:
        raise KeyboardInterrupt


@dataclass(slots=True)
class _Hold:
    """Whether interruptions wait, and whether one does."""

    active: bool = False
    pending: bool = False


_hold: Final = _Hold()
