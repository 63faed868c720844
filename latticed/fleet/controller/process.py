"""The program latticed-controller: options, settings, signals, the socket.

latticed-controller                     run, by /etc/latticed/controller.toml
latticed-controller --rebuild           begin an empty database, and learn what the fleet still has
latticed-controller --new-key           make another key, which an operator has to certify
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import latticed
from latticed.fleet.controller import database, serving, settings
from latticed.fleet.controller.api import FleetApi
from latticed.fleet.controller.running import KEY, RunningController
from latticed.kit import logs, os_signals, process_start, sd_notify
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latticed.fleet.controller.settings import ControllerSettings
    from latticed.kit.sd_notify import Notifier

EXIT_CODES: Final = {
    "settings_invalid": os.EX_CONFIG,
    "state_in_use": os.EX_TEMPFAIL,
    "store_damaged": os.EX_IOERR,
    "store_newer": os.EX_IOERR,
}
"""By problem; any other problem at start is 1, wrong usage is 2."""

log = logs.get_logger()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, or do what an option asks for; the exit code."""
    if argv is None:
        process_start.reset_for_server()
    options = parser().parse_args(argv)
    try:
        found = settings.read(settings.place(options.config))
        if options.new_key:
            return _new_key(found)
        logs.configure(found.log_level)
        # asyncio warns of each connection that a server closes, because nats-py starts TLS on a plain stream.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        try:
            return asyncio.run(_run(found, rebuild=options.rebuild))
        finally:
            logs.reset()
    except Problem as problem:
        hint = f"\nlatticed-controller: {problem.hint}" if problem.hint else ""
        sys.stderr.write(f"latticed-controller: {problem}{hint}\n")
        return EXIT_CODES.get(problem.code, 1)


def parser() -> argparse.ArgumentParser:
    """Its options."""
    made = argparse.ArgumentParser(
        prog="latticed-controller",
        description="Give the nodes of a fleet what its operators signed, in waves, and show what became of it.",
    )
    made.add_argument("--version", action="version", version=f"latticed {latticed.__version__}")
    made.add_argument(
        "--config", type=Path, metavar="FILE", help=f"settings (default: {settings.DEFAULT}, else {settings.BESIDE})"
    )
    made.add_argument(
        "--rebuild",
        action="store_true",
        help="put the database aside, begin an empty one, and learn from the message system what the fleet still has",
    )
    made.add_argument(
        "--new-key",
        action="store_true",
        help="put the key aside, make another one, and print its public half, which an operator certifies",
    )
    return made


async def _run(found: ControllerSettings, *, rebuild: bool) -> int:
    notifier = sd_notify.from_environment(os.environ)
    if rebuild:
        aside = await database.set_aside(Path(found.state_dir))
        log.warning("database_set_aside", path=str(aside) if aside is not None else "")
    peers = await asyncio.to_thread(settings.resolved, found.access)
    stopping = asyncio.Event()
    os_signals.act_on({signal.SIGTERM: stopping.set, signal.SIGINT: stopping.set})
    async with RunningController(found) as running:
        api = FleetApi(running, peers, version=latticed.__version__)
        async with serving.listening(api.application(), found.socket, group=found.access.socket_group):
            notifier.ready()
            log.info("controller_started", fleet=found.fleet, controller=found.controller)
            ended, stopped = asyncio.create_task(running.ended()), asyncio.create_task(stopping.wait())
            beating = asyncio.create_task(_watchdog(notifier))
            try:
                await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                notifier.stopping()
                api.closing.set()
                for task in (stopped, beating):
                    task.cancel()
                if not ended.done():
                    ended.cancel()
                await asyncio.wait({ended, stopped, beating})
        if not ended.cancelled():
            ended.result()
    return 0


async def _watchdog(notifier: Notifier) -> None:
    """Tell the service manager that the loop turns."""
    interval_s = sd_notify.watchdog_interval_s(os.environ)
    if interval_s is None:
        return
    while True:
        notifier.watchdog()
        await asyncio.sleep(interval_s / 2)


def _new_key(found: ControllerSettings) -> int:
    """Make another key while no controller runs on this state."""
    from latticed.trust import key_files

    given = settings.secret(found.key)
    if settings.is_there(given):
        hint = "latticectl fleet init makes keys of controllers; put another one there, or none"
        raise Problem("exists", f"expected no key at {given}, found one, which is used", hint)
    state = Path(found.state_dir)
    path = state / KEY
    with database.alone(state):
        with contextlib.suppress(FileNotFoundError):
            path.rename(state / f"{KEY}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        key = key_files.generate()
        key_files.create(path, key)
    sys.stdout.write(f"{key_files.public_text(key)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
