"""The daemon's entry point: options, exit codes, signals, the watchdog; `app` makes everything else."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import functools
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import latticed
from latticed import settings as settings_room
from latticed.kit import descriptors, heap, logs, os_signals, process_start, sd_notify
from latticed.kit.executor import DaemonThreadExecutor
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem
from latticed.settings import live
from latticed.system.registry import BUILTINS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from latticed.app import App
    from latticed.kit.sd_notify import Notifier
    from latticed.settings import Settings
    from latticed.system.builtin import Builtin

EXIT_CODES: Final = {
    "settings_invalid": os.EX_CONFIG,
    "state_in_use": os.EX_TEMPFAIL,
    "runtime_in_use": os.EX_TEMPFAIL,
    "ledger_damaged": os.EX_IOERR,
    "ledger_newer": os.EX_IOERR,
    "floors_invalid": os.EX_IOERR,
    "ledger_rolled_back": os.EX_IOERR,
}
"""Exit codes of latticed by problem (contracts §6); any other problem at start is 1, wrong usage is 2."""

FAILED: Final = 1
"""Exit code of a daemon that stops because it cannot go on, or is forced."""
LOOK_S: Final = 1.0
"""Interval of the polls of settings, trust policy, socket and state directory."""
FINISH_S: Final = 1.0
"""How long a poll may go on during shutdown: a revocation just read must be recorded."""
STOP_S: Final = 20.0
"""How long stopping may take beyond draining and the plugins' grace, before the process exits without the rest."""
EXTEND_S: Final = 10.0
"""How often the start timeout is extended during the first scan (sd_notify(3), EXTEND_TIMEOUT_USEC)."""

log = logs.get_logger()


def main(argv: Sequence[str] | None = None, *, builtins: tuple[Builtin, ...] = BUILTINS, version: str = "") -> int:
    """Run the daemon until it is stopped, or do what an option asks for; the exit code.

    `argv` without the program's name; None takes the process's own, and sets up signals and limits as for a server.
    `builtins` are the plugins that latticed brings, `version` its own; empty is that of the installed package.
    """
    # Only as a program of its own: a caller with `argv` keeps its signals, umask and limits.
    if argv is None:
        # Importing makes objects to stay, among which CPython's default of 700 looks for garbage 150 times: 25 ms.
        gc.set_threshold(10_000, 50, 50)
        process_start.reset_for_server()
        heap.use_one_arena()
        faulthandler.enable()  # a crash in a C library leaves the stacks of all threads on stderr
    parser = _parser()
    options = parser.parse_args(argv)
    # argparse has exclusive groups but no options that need another one.
    astray = options.without_floors and not (options.recover or options.restore)
    if astray or (options.public_key and not options.restore):
        parser.error("--without-floors goes with --recover or --restore, --public-key with --restore")
    try:
        settings = settings_room.load(options.config, os.environ, os.geteuid())
        # Before logging is set up: stdout carries the settings only.
        if options.check_config:
            return _show(settings)
        if options.recover or options.restore:
            return _mend(options, settings, builtins, version)
        logs.configure(settings.log.level, form=settings.log.format)
        # What Python prints to stderr by itself (failed `__del__`, threads) becomes log lines.
        logs.take_unraised()
        for sentence in settings_room.advice(settings.renamed):
            logs.get_logger().warning("setting_renamed", reason=sentence)
        descriptors.raise_limit()
        # Typed by root at a shell, while the daemon's user must be able to use every file that is made.
        if options.accept_rollback:
            from latticed.lifecycle import offline as mending

            mending.become_owner(settings.state_dir)
        make = functools.partial(
            _app, options.config, settings, accept_rollback=options.accept_rollback, builtins=builtins, version=version
        )
        return asyncio.run(_run(settings, make))
    except Problem as problem:
        hint = f" ({problem.hint})" if problem.hint else ""
        sys.stderr.write(f"latticed: {problem.code}: {problem.reason}{hint}\n")
        return EXIT_CODES.get(problem.code, 1)
    except RuntimeError as error:
        # Python has no other sign of a thread that the limit of processes refuses.
        if str(error) != "can't start new thread":
            raise
        sys.stderr.write("latticed: cannot start a thread: raise the limit of processes (RLIMIT_NPROC, TasksMax)\n")
        return 1
    finally:
        logs.reset()
        _let_go_of_stdout()


def _parser() -> argparse.ArgumentParser:
    """The options of `latticed`; `main` checks which of them go together."""
    parser = argparse.ArgumentParser(prog="latticed", description="Run plugins without trusting them blindly.")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (TOML); default /etc/latticed/latticed.toml"
    )
    parser.add_argument("--check-config", action="store_true", help="print the effective settings and their origin")
    mending = parser.add_argument_group("with the daemon stopped")
    which = mending.add_mutually_exclusive_group()
    which.add_argument("--recover", action="store_true", help="replace a damaged ledger; prints what was done")
    which.add_argument("--restore", metavar="FILE", help="replace the state by that of a backup (- for stdin)")
    mending.add_argument(
        "--without-floors", action="store_true", help="go on though the signed floors file is lost or not genuine"
    )
    mending.add_argument(
        "--public-key", metavar="KEY", default="", help="the key of the other host that a backup may come from"
    )
    which.add_argument(
        "--accept-rollback",
        action="store_true",
        help="start although the ledger is older than what was decided, held to the signed floors; on record",
    )
    parser.add_argument("--version", action="version", version=f"latticed {latticed.__version__}")
    return parser


def _let_go_of_stdout() -> None:
    """Drop log output that a full disk did not take: else Python's flush at exit would make the status 120."""
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes stdout again when it ends; on /dev/null that succeeds.
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _mend(options: argparse.Namespace, settings: Settings, builtins: tuple[Builtin, ...], version: str) -> int:
    """Recover or restore, as the owner of the state directory, and print what was done; returns 0."""
    from latticed.lifecycle import offline as mending

    with contextlib.ExitStack() as stack:
        # Opened as root, before the uid changes: the daemon's user may not be able to read the operator's file.
        source = mending.opened(options.restore, stack) if options.restore else None
        mending.become_owner(settings.state_dir)
        place, without = (
            mending.place(settings, builtins, version or latticed.__version__),
            options.without_floors,
        )
        lines = (
            mending.recover(place, without_floors=without)
            if source is None
            else mending.restore(place, settings, source, public_key=options.public_key, without_floors=without)
        )
        # `lines` is a generator: the work is done here, within the stack that keeps the source open.
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _show(settings: Settings) -> int:
    """`--check-config`: print each setting with its origin; 0. Problem for settings that a start would refuse."""
    from latticed.rpc import access  # what a start would refuse is refused here too

    allowed = access.resolve(settings.access, own_uid=os.geteuid())
    access.socket_gid(settings.access.socket_group)
    for key, value, origin in settings_room.describe(settings):
        when = "" if live.takes_effect(key) else "; a change needs a restart"
        sys.stdout.write(f"{key} = {json.dumps(value)}  # {origin}{when}\n")
    for sentence in (*settings_room.advice(settings.renamed), *allowed.without_effect):
        sys.stderr.write(f"warning: {sentence}\n")
    return 0


def _app(config: Path | None, settings: Settings, **more: Any) -> App:
    app = imported_app()
    # What was imported stays as long as the daemon: the collection before READY=1 walks the rest only (30 ms).
    gc.freeze()
    return app(config, settings, **more)


def imported_app() -> type[App]:
    """`App`, imported without what its libraries would keep in memory and latticed does not use.

    Late, as --check-config and --version do not need it.
    """
    from latticed.kit import lean_imports

    with lean_imports.lean():
        from latticed.host.egress import authorities

        with authorities.unread():
            from latticed.app import App

    return App


async def _run(settings: Settings, make: Callable[..., App]) -> int:
    """Open the app that `make(inherited=…)` returns, notify the service manager, serve until stopped; the exit code."""
    from latticed.sandbox import host_facts

    # All three take their variables out of the environment before any child could inherit them.
    notifier = sd_notify.from_environment(os.environ)
    watchdog_s = sd_notify.watchdog_interval_s(os.environ)
    listener = _listener()
    loop = asyncio.get_running_loop()
    # asyncio's own executor joins its threads at the end: one in a system call that hangs would block stopping.
    loop.set_default_executor(DaemonThreadExecutor())
    # Before the app is opened: a SIGTERM during the first scan must end it too.
    app: App | None = None

    def stop_s() -> float:
        wanted = (settings if app is None else app.api.settings).supervision
        return wanted.drain_s + wanted.stop_grace_s + STOP_S

    signals = Signals(loop, stop_s=stop_s)
    async with contextlib.AsyncExitStack() as stack:
        host_facts.hide_memory()  # before the first child: children of our uid must not read it
        made = make(inherited=listener)
        if not await _opened(stack, made, signals, notifier):
            return 0
        app = made
        # Pushed after the app, so it runs before the app is closed.
        stack.callback(notifier.stopping, "stopping")
        # Settings may allow more than the unit's TimeoutStopSec.
        stack.callback(lambda: notifier.extend(stop_s()))
        # After everything long-lived was made, so that `gc.freeze` covers it.
        _freeze_collector()
        heap.return_free_memory()  # of the start: 0.6 MiB
        notifier.ready("ready")
        log.info("daemon_ready", version=app.api.version, plugins=len(app.api.lifecycle.known()))
        code = await _serve(app, signals, notifier, watchdog_s)
        log.info("daemon_stopping")
    log.info("daemon_stopped")
    return code


def _listener() -> socket.socket | None:
    """The listening socket that the service manager passed; None without one, Problem socket_unusable for another."""
    try:
        return sd_notify.passed_listener(os.environ)
    except OSError as error:
        raise Problem("socket_unusable", str(error)) from error


async def _opened(stack: contextlib.AsyncExitStack, app: App, signals: Signals, notifier: Notifier) -> bool:
    """Open the app, extending the start timeout during the first scan; False when stopped before its end."""
    # A task, because a wait for the app alone could neither extend the timeout nor be ended by a signal.
    opening = asyncio.ensure_future(stack.enter_async_context(app))
    ended = asyncio.ensure_future(signals.ended.wait())
    try:
        while not opening.done():
            await asyncio.wait({opening, ended}, timeout=EXTEND_S, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not opening.done():
                opening.cancel()
                # Waited for, so that what is open already is closed before the process ends.
                await asyncio.wait({opening})
                return False
            # Three intervals: one that comes late must not let the service manager give up (EXTEND_TIMEOUT_USEC).
            notifier.extend(3 * EXTEND_S)
        # Done by now; this raises what opening it raised.
        await opening
    finally:
        ended.cancel()
    return True


async def _serve(app: App, signals: Signals, notifier: Notifier, watchdog_s: float | None) -> int:
    """Feed the watchdog, handle signals and start the polls until stopped; the exit code."""
    from latticed.processes import orphans

    # `watchdog_s` is half of WatchdogSec already (sd_watchdog_enabled(3)).
    pause_s = min(LOOK_S, watchdog_s or LOOK_S)
    reload: asyncio.Task[None] | None = None
    while not await signals.stop_within(pause_s):
        notifier.watchdog()
        # As process 1 of a container the daemon inherits every orphan; unreaped they stay zombies.
        orphans.reap()
        # A daemon that no longer sees tampering must not keep plugins running.
        if not app.api.lifecycle.alive:
            log.critical("daemon_failed", reason="changes on disk are not followed any more: stopping everything")
            return FAILED
        for look in app.reloader.looks:
            look.start()
        # One reload at a time; a SIGHUP during one is kept in `Signals` and starts the next.
        if (reload is None or reload.done()) and signals.take_reload():
            reload = fenced(_reload(app, notifier), lambda error: log.error("reload_failed", error=repr(error)))
    # Before the app closes: a poll that goes on would use a closed ledger.
    await asyncio.gather(*(look.stop(FINISH_S) for look in app.reloader.looks))
    if reload is not None:
        reload.cancel()
        await asyncio.wait({reload})
    return 0


def _freeze_collector() -> None:
    """Exempt objects that live as long as the daemon from collection, and make full collections rare.

    With Python's defaults one message of 50,000 values triggers full collections, each of which walks all objects of
    the daemon: 160 ms of the event loop at 100 plugins, and nothing found. Generation 0 keeps its threshold: the
    garbage of one outside request may be 1 MiB.
    """
    # First, or `freeze` would keep the garbage of the start for ever.
    gc.collect()
    gc.freeze()
    # 700 and 10 are CPython's defaults (3.11); the third, 50 instead of 10, makes full collections five times rarer.
    gc.set_threshold(700, 10, 50)


async def _reload(app: App, notifier: Notifier) -> None:
    """SIGHUP: apply what can be, and keep the service manager informed."""
    notifier.reloading()
    try:
        await app.reloader.reload()
    finally:
        # Type=notify-reload waits for READY=1 after RELOADING=1, also of a reload that failed.
        notifier.ready("reloaded")


class Signals:
    """SIGTERM and SIGINT stop the daemon, within `stop_s()`; a second one exits at once. SIGHUP reloads.

    `ended` is set once it is to stop. Handlers run on `loop`, between its callbacks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, stop_s: Callable[[], float]) -> None:
        self._loop = loop
        self._stop_s = stop_s
        self.ended = asyncio.Event()
        self._wake = asyncio.Event()
        self._reload = False
        os_signals.act_on({signal.SIGHUP: self._again, signal.SIGTERM: self._end, signal.SIGINT: self._end})

    async def stop_within(self, seconds: float) -> bool:
        """Wait for any signal, `seconds` at most; True once the daemon is to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        # Once the daemon is to stop, `_wake` stays set: later waits return at once.
        if not self.ended.is_set():
            self._wake.clear()
        return self.ended.is_set()

    def take_reload(self) -> bool:
        """Whether a reload was requested since the last call."""
        asked, self._reload = self._reload, False
        return asked

    def _end(self) -> None:
        """SIGTERM or SIGINT came: begin to stop, or exit at once if that has begun already."""
        if self.ended.is_set():
            # os._exit never returns, so nothing below runs twice.
            self._force("a second signal")
        self.ended.set()
        self._wake.set()
        # Never cancelled: a stop in time ends the loop, and the timer with it.
        within_s = self._stop_s()
        self._loop.call_later(within_s, self._force, f"it did not end within {within_s:g} s")

    def _force(self, reason: str) -> None:
        """Exit now; the kernel kills our children (prctl(2), PR_SET_PDEATHSIG)."""
        log.error("daemon_forced", reason=reason)
        logs.flush()
        # Not sys.exit: that would wait for threads and exit handlers, one of which may be what hangs.
        os._exit(FAILED)

    def _again(self) -> None:
        """SIGHUP came; several before the next `take_reload` count as one."""
        self._reload = True
        self._wake.set()


if __name__ == "__main__":
    sys.exit(main())
