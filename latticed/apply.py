"""The root helper, a process of its own: applies what operators approved to it, and undoes what they do not confirm.

Separate because changing the host takes root, which the daemon must never have. It trusts nothing of the daemon's:
code, settings, state and socket are root's alone, and every approval is made to it (contracts §12). `plans.protocol`
has its messages. Run it as root: `latticed-apply`, or `python -I -m latticed.apply`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from latticed.plans.decide import Approvers
    from latticed.plans.kind import Kind
    from latticed.plans.store import Store
    from latticed.plans.upkeep import Choices, Upkeep
    from latticed.settings import Settings

COMMAND: Final = (sys.executable, "-I", "-m", "latticed.apply")
"""Starts this program; dead-men are started by it, and so is a helper that was not started with -I."""
_KEPT_VARIABLES: Final = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "JOURNAL_STREAM")
"""What a service manager passes; nothing else of the environment is looked at."""
EXIT_CODES: Final = {"settings_invalid": os.EX_CONFIG, "already_running": os.EX_TEMPFAIL, "not_root": os.EX_NOPERM}
"""Exit codes by the code of the Problem; 1 for any other."""


def main(
    argv: Sequence[str] | None = None, *, kinds: Mapping[str, Kind] | None = None, command: Sequence[str] = COMMAND
) -> int:
    """Run the helper until SIGTERM or SIGINT, or be one of its dead-men; the exit code.

    `kinds`: those of this version, unless others are given together with the `command` of a program that does the same.
    """
    if argv is None and not sys.flags.isolated:
        # A console script starts Python with the caller's PYTHONPATH and working directory in reach (python(1), -I).
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        os.execve(command[0], [*command, *sys.argv[1:]], environment)  # noqa: S606 - ourselves
    # After that: what is imported from here on is what -I finds.
    import resource
    from pathlib import Path

    from latticed.kit import logs, process_start
    from latticed.model.errors import Problem

    process_start.reset_for_server()
    # No core file: it would have the secrets of plans.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    options = _parser(Path).parse_args(argv)
    try:
        if options.dead_man or options.undo:
            return _be_dead_man(options, kinds)
        return _serve(options, kinds, command)
    except Problem as problem:
        hint = f" ({problem.hint})" if problem.hint else ""
        sys.stderr.write(f"latticed-apply: {problem.code}: {problem.reason}{hint}\n")
        return EXIT_CODES.get(problem.code, 1)
    except OSError as error:
        sys.stderr.write(f"latticed-apply: state_unusable: {error}\n")
        return 1
    finally:
        logs.reset()


def _parser(path: type[Path]) -> argparse.ArgumentParser:
    """The command line."""
    import latticed

    parser = argparse.ArgumentParser(prog="latticed-apply", description="Apply approved plans of latticed, as root.")
    parser.add_argument("--config", type=path, metavar="FILE", help="settings (TOML) that root alone can change")
    restoring = parser.add_mutually_exclusive_group()
    restoring.add_argument("--boot", action="store_true", help="first restore what was confirmed before the boot")
    restoring.add_argument(
        "--boot-only",
        action="store_true",
        help="restore that, and end; 1 when it failed",
    )
    parser.add_argument("--version", action="version", version=f"latticed-apply {latticed.__version__}")
    parser.add_argument("--dead-man", nargs=3, metavar=("KIND", "APPLY", "FD"), help=argparse.SUPPRESS)
    parser.add_argument("--undo", nargs=3, metavar=("KIND", "APPLY", "HELPER"), help=argparse.SUPPRESS)
    return parser


def _serve(options: argparse.Namespace, kinds: Mapping[str, Kind] | None, command: Sequence[str]) -> int:
    """Be the helper; the exit code. Problem, OSError."""
    import asyncio
    import pathlib

    from latticed.kit import clock, logs
    from latticed.plans import dead_man, operations, steps, undo_timers
    from latticed.plans import store as stores

    settings = _settings(options.config, kinds)
    logs.configure(settings.log.level, form=settings.log.format)
    approvers = _approvers(settings)
    stores.check_place(pathlib.Path(settings.apply.socket).parent)
    store, upkeep, choices = _opened(settings, kinds, fresh=True)
    if options.boot_only:
        return 1 if any(one.outcome == "failed" for one in upkeep.restore_all()) else 0
    words = [*command, *(["--config", str(options.config.absolute())] if options.config else [])]
    # Under a service manager a process of ours would end with our unit; run by hand, there is nobody else to ask.
    dead_men: dead_man.DeadMen | undo_timers.UndoTimers = (
        undo_timers.UndoTimers(words, store) if undo_timers.usable(os.environ) else dead_man.DeadMen(words)
    )
    carry_out = operations.Operations(
        store,
        steps.StepChain(store.steps, clock.SystemClock()),
        choices,
        upkeep,
        clock=clock.SystemClock(),
        arm=dead_men.start,
    ).carry_out
    # Before anybody can ask: what expired while nobody was here comes back first.
    upkeep.undo_expired()
    if options.boot:
        upkeep.restore_all()

    def tick() -> None:
        dead_men.reap()
        upkeep.undo_expired()

    return asyncio.run(_until_signalled(settings, approvers, carry_out, tick, upkeep))


async def _until_signalled(settings: Settings, approvers: Approvers, carry_out: Any, tick: Any, upkeep: Upkeep) -> int:
    """Listen and answer until a signal; the exit code. Problem socket_unusable, settings_invalid."""
    import asyncio
    import contextlib
    import signal
    from pathlib import Path

    from latticed.kit import executor, logs, os_signals, sd_notify
    from latticed.model.errors import Problem
    from latticed.plans.server import PlanServer

    log = logs.get_logger()
    notifier = sd_notify.from_environment(os.environ)
    try:
        inherited = sd_notify.passed_listener(os.environ)
    except OSError as error:
        raise Problem("socket_unusable", str(error)) from error
    stop = asyncio.Event()
    # Daemon threads: a hung disk does not keep the process from ending.
    asyncio.get_running_loop().set_default_executor(executor.DaemonThreadExecutor())
    os_signals.act_on({signal.SIGTERM: stop.set, signal.SIGINT: stop.set})
    server = PlanServer(
        carry_out, approvers=approvers, tick=tick, compare=upkeep.look_for_drift, poll_s=settings.apply.poll_s
    )
    async with contextlib.AsyncExitStack() as stack:
        sock = inherited
        if sock is None:
            path = Path(settings.apply.socket)
            sock = _listen(path)
            stack.callback(path.unlink, missing_ok=True)
        await stack.enter_async_context(server.serving(sock))
        notifier.ready("applying what is approved")
        log.info("apply_helper_ready", kinds=",".join(sorted(settings.apply.kinds)) or "none")
        await stop.wait()
        notifier.stopping()
    return 0


def _listen(path: Path) -> socket.socket:
    """A listening socket below directories that root alone can change: everybody may connect, and is judged by
    SO_PEERCRED. Problem settings_invalid, socket_unusable.
    """
    from latticed.kit import unix_listener
    from latticed.model.errors import Problem
    from latticed.plans import store
    from latticed.plans.server import BACKLOG

    try:
        store.check_place(path.parent)
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return unix_listener.listen(path, mode=0o666, backlog=BACKLOG)
    except OSError as error:
        raise Problem("socket_unusable", f"cannot listen at {path}: {error.strerror or error}") from error


def _be_dead_man(options: argparse.Namespace, kinds: Mapping[str, Kind] | None) -> int:
    """Be the dead-man of one change, as a process of the helper's or of its timer unit; the exit code."""
    from latticed.kit import logs
    from latticed.plans import dead_man, undo_timers

    settings = _settings(options.config, kinds)
    store, upkeep, _ = _opened(settings, kinds, fresh=False)
    if options.undo:
        kind, apply_id, helper = options.undo
        logs.configure(settings.log.level, form=settings.log.format)
        return undo_timers.undo(store, upkeep, kind, apply_id, helper)
    kind, apply_id, helper = options.dead_man
    return dead_man.watch(store, upkeep, kind, apply_id, int(helper))


def _settings(config: Path | None, kinds: Mapping[str, Kind] | None) -> Settings:
    """The settings, if root alone can change them, and the code that reads them. Problem settings_invalid, not_root."""
    from latticed import settings
    from latticed.model.errors import Problem
    from latticed.plans import kinds as built_in

    if os.geteuid() != 0:
        raise Problem("not_root", "only root can change the host", "sudo latticed-apply")
    if kinds is None:
        # They are loaded when they are asked for first, and have to be before what was loaded is looked at.
        dict(built_in.KINDS)
    _check_code()
    # No variable counts: they are the caller's. As root `load` takes files of root's alone.
    return settings.load(config, {}, 0)


def _check_code() -> None:
    """Problem settings_invalid unless root alone can change every module that was imported, and the interpreter."""
    # The library that is loaded when an offer needs it: later, nobody would look at it.
    import rfc8785  # noqa: F401

    from latticed.kit import trusted_files
    from latticed.model.errors import Problem

    loaded = {
        os.path.realpath(found) for one in list(sys.modules.values()) if (found := getattr(one, "__file__", None))
    }
    # The files too: one of somebody else's in a directory of root's is still theirs to write.
    for file in (*loaded, os.path.realpath(sys.executable)):
        try:
            trusted_files.check_path(file, owners=frozenset({0}))
        except trusted_files.ForeignFile as fault:
            hint = "install latticed as root, for example in /opt/latticed"
            raise Problem("settings_invalid", f"somebody else can change this program: {fault}", hint) from fault


def _opened(settings: Settings, kinds: Mapping[str, Kind] | None, *, fresh: bool) -> tuple[Store, Upkeep, Choices]:
    """Directory and what keeps it up; with `fresh` the directory is made and the helper's alone from now on.

    Problem settings_invalid, already_running; OSError.
    """
    from pathlib import Path

    from latticed.kit import clock
    from latticed.model.errors import Problem
    from latticed.plans import kinds as built_in
    from latticed.plans import steps
    from latticed.plans import store as stores
    from latticed.plans.upkeep import Choices, Upkeep

    known = built_in.configured(settings) if kinds is None else kinds
    wanted = settings.apply
    if unknown := sorted({*wanted.kinds, *wanted.restore} - known.keys()):
        here = ", ".join(sorted(known)) or "none"
        raise Problem(
            "settings_invalid", f"[apply]: this version applies no plans of kind {unknown[0]!r}; kinds: {here}"
        )
    directory = Path(wanted.state_dir)
    stores.check_place(directory)
    if fresh:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        _be_alone(directory)
    store = stores.Store(directory)
    if fresh:
        store.open()
    choices = Choices(
        kinds=known,
        enabled=frozenset(wanted.kinds),
        programs=wanted.programs,
        restored=frozenset(wanted.restore) & frozenset(wanted.kinds),
        confirm_within_s=wanted.confirm_within_s,
    )
    system = clock.SystemClock()
    return store, Upkeep(store, steps.StepChain(store.steps, system), choices, clock=system), choices


def _be_alone(directory: Path) -> None:
    """Hold the lock that a second helper on the same directory fails to get: Problem already_running."""
    import fcntl

    from latticed.model.errors import Problem

    # Open, and held, until the process ends; not inherited, so that a dead-man does not keep it.
    fd = os.open(directory / "instance", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Problem(
            "already_running", f"another root helper uses {directory}", "systemctl status latticed-apply"
        ) from error


def _approvers(settings: Settings) -> Approvers:
    """Who may ask, by number. Problem settings_invalid. Asks the user database, once."""
    import grp
    import pwd

    from latticed.model.errors import Problem
    from latticed.plans.decide import Approvers

    def uid(name: str, key: str) -> int:
        try:
            return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
        except KeyError as error:
            raise Problem("settings_invalid", f"apply.{key}: expected a user of this host, found {name!r}") from error

    def gid(name: str) -> int:
        try:
            return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
        except KeyError as error:
            raise Problem("settings_invalid", f"apply.approvers: expected a group, found {name!r}") from error

    wanted = settings.apply
    # The default names a user that only a package makes; without it there is no daemon to let in.
    is_given = "apply.daemon_user" in settings.origins
    daemon_uid = -1
    try:
        daemon_uid = uid(wanted.daemon_user, "daemon_user") if wanted.daemon_user else -1
    except Problem:
        if is_given:
            raise
    if daemon_uid == 0:
        raise Problem(
            "settings_invalid", "apply.daemon_user: expected the daemon's user, found root", "root may do all"
        )
    users = {uid(name, "approvers"): name for name in wanted.approvers if not name.startswith("@")}
    groups = frozenset(gid(name[1:]) for name in wanted.approvers if name.startswith("@"))
    names = {0: "root", daemon_uid: wanted.daemon_user, **users}
    return Approvers(daemon_uid=daemon_uid, uids=frozenset(users), gids=groups, names=names)


if __name__ == "__main__":
    sys.exit(main())
