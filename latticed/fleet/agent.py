"""The agent of a fleet's host, `latticed-fleet`, which the unit runs: two processes of one user with shared memory.

    fleet-node (`node`)             the unit's main process: keeps, judges, asks the daemon; no network
      │ socketpair
    fleet-link (`link_process`)     the connection; no socket of the host, no file of the node

The first loads all that both need, forks the second, and reads no secret before. What each can do from then on the
kernel holds (`confinement`). When one ends, or the link is stuck, both end and the service manager begins again, after
a pause. Nothing on the host stops with them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import ssl
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import latticed
from latticed.kit import heap, lean_imports, logs, process_start, sd_notify
from latticed.kit.text import sanitise
from latticed.model.errors import Problem

with lean_imports.lean():  # as in `_warm`: what they take along stays in the memory of both halves
    from latticed.fleet import agent_settings, confinement

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from latticed.fleet.agent_settings import AgentSettings, AgentState
    from latticed.fleet.documents import EnrolmentToken

log = logs.get_logger()

SILENT_S: Final = 150.0
"""A link that says nothing for so long is stuck: it says something every few seconds."""
_SAID_BYTES: Final = 400
_READ_BYTES: Final = 64 << 10
EXIT_CODES: Final = dict.fromkeys(
    ("not_enrolled", "fleet_state_invalid", "settings_invalid", "not_confined"), os.EX_CONFIG
)
"""Of problems after which it is of no use to begin again; of others it is 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHost:
    """What both halves are told."""

    settings: AgentSettings
    state: AgentState
    token: EnrolmentToken


def main(argv: Sequence[str] | None = None) -> int:
    """Be the agent until a signal. The exit code: 78 (EX_CONFIG) for settings or a state that are of no use, a host
    that is of no fleet, and a kernel that cannot confine the halves; 1 when a half has ended. `join`: see `joining`.
    """
    if argv is None:
        process_start.reset_for_server()
    words = sys.argv[1:] if argv is None else argv
    # As the unit has it, without any: argparse would stay in the memory of both halves.
    options = _parser().parse_args(words) if words else None
    try:
        if options is None:
            return _run(agent_settings.SETTINGS, agent_settings.PINNED, agent_settings.STATE)
        if options.action is None:
            return _run(options.settings, options.pinned, options.state)
        from latticed.fleet import joining

        return joining.run(options)
    except Problem as problem:
        _complain("latticed-fleet", problem)
        return EXIT_CODES.get(problem.code, 1) if options is None or options.action is None else 1


def _parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="latticed-fleet", description="Have this host run what the operator of its fleet signs."
    )
    parser.add_argument("--version", action="version", version=f"latticed-fleet {latticed.__version__}")
    parser.add_argument("--settings", type=Path, metavar="FILE", default=agent_settings.SETTINGS)
    parser.add_argument(
        "--pinned", type=Path, metavar="FILE", default=agent_settings.PINNED, help="the token joined by"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", default=agent_settings.STATE)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (without one: be the agent)")
    join = actions.add_parser("join", help="have this host join a fleet, as root", description="Join a fleet, once.")
    join.add_argument("invitation", type=Path, metavar="INVITATION", help="from latticectl fleet enroll; - for stdin")
    join.add_argument("--operator", metavar="KEY", help="refuse an invitation that this public key has not signed")
    join.add_argument(
        "--user", default=agent_settings.USER, help="the agent's user, or its UID:GID (default: %(default)s)"
    )
    join.add_argument("--wait", type=float, default=60.0, metavar="S", help="for a controller (default: %(default)s)")
    return parser


def _run(settings: Path, pinned: Path, state: Path) -> int:
    """Fork the link, then be the node."""
    host = AgentHost(
        settings=agent_settings.read(settings),
        state=agent_settings.AgentState(state),
        token=agent_settings.pinned(pinned),
    )
    notifier = sd_notify.from_environment(os.environ)
    watched = sd_notify.watchdog_interval_s(os.environ) is not None
    _warm()
    link = _forked(host)
    signal.signal(signal.SIGCHLD, lambda *_: link.end())
    logs.configure("info")
    try:
        confinement.begin("fleet-node")
        confinement.confine_node()
        return _node(host, link, _Manager(host, notifier, watched=watched))
    finally:
        logs.reset()


def _warm() -> None:
    """Load what both halves need, once, and have the collector leave it alone: pages that nobody writes stay shared."""
    heap.use_one_arena()
    with lean_imports.lean():
        from latticed.fleet import link_process, node, renewing  # noqa: F401

    gc.collect()
    gc.freeze()
    heap.return_free_memory()


def _forked(host: AgentHost) -> _LinkHalf:
    """The link, begun: this process's end of the socketpair, and of a pipe by which the link says how it is."""
    ours, theirs = socket.socketpair()
    reports, report = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_be_link(host, theirs, report, parent))
    theirs.close()
    os.close(report)
    return _LinkHalf(pid, ours, reports)


@dataclass(slots=True)
class _LinkHalf:
    """The link's process, as the node sees it."""

    pid: int
    channel: socket.socket
    reports: int
    said: str = ""
    heard_s: float = field(default_factory=time.monotonic)

    def hear(self) -> None:
        """Take what it has said: lines, of which the last that is not empty counts."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.reports, _READ_BYTES)  # once: it may write as fast as it can
        if data:
            self.heard_s = time.monotonic()
            said = [one for one in data.decode("utf-8", "replace").split("\n") if one]
            self.said = sanitise(said[-1], _SAID_BYTES) if said else self.said

    def end(self) -> None:
        """End this process with the link, if that has ended. What the node has to keep is on disk at any moment."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            log.warning("fleet_half_ended", half="link", exit_code=code)
            _leave(os.EX_CONFIG if code == os.EX_CONFIG else 1)


def _leave(code: int) -> NoReturn:
    logs.reset()
    os._exit(code)


class _Manager:
    """What the service manager is told: ready once both halves are, how it goes, and that both live."""

    def __init__(self, host: AgentHost, notifier: sd_notify.Notifier, *, watched: bool) -> None:
        self._name = f"{host.token.node} of {host.token.fleet}"
        self._notifier = notifier
        self._watched = watched
        self._lock = threading.Lock()
        self._shown = ""
        self._node = ""

    def told(self, said: str, link: _LinkHalf) -> None:
        """The node says how it goes, or by an empty text that it lives; the link is heard by the way."""
        with self._lock:
            link.hear()
            self._node = said or self._node
            if time.monotonic() - link.heard_s > SILENT_S:
                log.error("fleet_half_stuck", half="link")
                os.kill(link.pid, signal.SIGKILL)
                _leave(1)
            if self._watched:
                self._notifier.watchdog()
            shown = f"{self._name}: {link.said}; {self._node}"
            if link.said and self._node and shown != self._shown:
                if not self._shown:
                    log.info("fleet_agent_ready", link=link.said)
                self._shown = shown
                self._notifier.ready(shown)


def _node(host: AgentHost, link: _LinkHalf, manager: _Manager) -> int:
    from latticed.fleet import node

    node.run(
        link.channel,
        host.state.node,
        host.settings.socket,
        reconcile_s=host.settings.reconcile_s,
        owner=lambda: host.settings.daemon_user,
        pinned=host.token,
        tell=lambda said: manager.told(said, link),
    )
    return 1  # it only returns when the link is of no use any more


def _be_link(host: AgentHost, mine: socket.socket, report: int, parent: int) -> int:
    """In the forked process: be the link to its end; the exit code."""
    try:
        confinement.begin("fleet-link", parent)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it ends with the node
        _close_others({0, 1, 2, mine.fileno(), report})
        logs.configure("info")  # before what follows: it makes no socket of this host any more
        return _link(host, mine, _telling(report))
    except Problem as problem:
        _complain("latticed-fleet: link", problem)
        return EXIT_CODES.get(problem.code, 1)
    except Exception:  # noqa: BLE001 - of a forked process nothing may go on in the other's code
        traceback.print_exc()
        return 1
    finally:
        logs.reset()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


def _link(host: AgentHost, mine: socket.socket, tell: Callable[[str], None]) -> int:
    from latticed.fleet import link_process
    from latticed.fleet.renewing import Renewing

    state, token, settings = host.state, host.token, host.settings
    confinement.confine_link(readable=_readable(), writable=(state.link, state.spool))
    wanted = link_process.LinkSettings(
        node=token.node,
        servers=settings.servers or token.addresses,
        ca="",
        credentials=str(state.credentials),
        spool=str(state.spool),
        https_hosts=settings.https_hosts,
        spool_bytes=settings.spool_mib << 20,
        bundle_bytes=settings.bundle_mib << 20,
    )
    try:
        tls = ssl.create_default_context(cadata=token.certificates)
    except (ssl.SSLError, ValueError) as error:
        raise Problem("fleet_state_invalid", f"the token's certificates: {error}") from error
    renewing = Renewing(token=token, credentials=state.credentials)
    return link_process.run(wanted, tls, mine, renewing=renewing, tell=tell)


def _readable() -> tuple[Path, ...]:
    """What the link reads besides: programs, the host's settings, name servers (/run), random numbers."""
    places = [Path(one) for one in ("/usr", "/etc", "/lib", "/lib64", "/run", "/dev/null", "/dev/urandom")]
    own = {Path(sys.prefix), Path(sys.base_prefix), Path(latticed.__file__).resolve().parents[1]}
    return (*places, *own)


def _telling(report: int) -> Callable[[str], None]:
    """What the link tells the node: lines, which are dropped while nobody reads them."""

    def tell(said: str) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(report, sanitise(said, _SAID_BYTES).encode()[:_READ_BYTES] + b"\n")

    return tell


def _close_others(kept: set[int]) -> None:
    """Close every descriptor but these: nothing of the node's is left."""
    low = 0
    for fd in sorted(kept):
        if low < fd:  # an empty range would be all of them (Python 3.11)
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


def _complain(who: str, problem: Problem) -> None:
    sys.stderr.write(f"{who}: {problem.code}: {problem.reason}\n")
    if problem.hint:
        sys.stderr.write(f"hint: {problem.hint}\n")


if __name__ == "__main__":
    sys.exit(main())
