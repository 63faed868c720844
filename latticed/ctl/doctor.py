"""latticectl doctor: whether everything around the daemon is as it should be; each line is ok, or says what helps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import subprocess
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.ctl import codes, render, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Column
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latticed.ctl.session import CtlSession
    from latticed.settings import Settings

EXAMPLES: Final = examples(
    "latticectl doctor", "latticectl doctor --format json", "sudo latticectl doctor   # the helper too"
)

UNIT: Final = "latticed.service"
SOCKET: Final = "latticed.socket"
LOW_SHARE: Final = 0.1
LOW_BYTES: Final = 256 << 20
"""Less room than both is told."""
_COLUMNS: Final = (
    Column(title="CHECK"),
    Column(title="IS"),
    Column(title="FOUND"),
    Column(title="WHAT HELPS"),
)
_SYSTEMCTL_S: Final = 10.0
_NAMESPACES: Final = frozenset({"user", "mnt", "pid", "net", "ipc"})
"""What an isolated plugin is put into; RestrictNamespaces= lists what may be made, or is `no`."""
_SHOWN: Final = ("LoadState", "ActiveState", "UnitFileState", "NeedDaemonReload", "Delegate", "RestrictNamespaces")
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES: Final = 512  # more than struct timex has


class Finding(NamedTuple):
    """`state`: `ok`; `off`, for what is not used here; `look`, for what should be mended; `bad`, for what fails."""

    check: str
    state: str
    found: str
    helps: str = ""


def arguments(parser: Parser) -> None:
    """It takes the common options alone."""


def run(session: CtlSession) -> int:
    """Look at everything, print a line for each; exit code 3 unless all are ok or off."""
    found = findings(session)
    if session.screen.json_wanted:
        session.screen.json([one._asdict() for one in found])
    else:
        session.screen.rows(_COLUMNS, [(one.check, render.word(one.state), one.found, one.helps) for one in found])
    return ExitCode.OK if all(one.state in {"ok", "off"} for one in found) else ExitCode.UNHEALTHY


def findings(session: CtlSession) -> list[Finding]:
    """All findings, in the order in which a reader needs them."""
    return list(_all(session))


def _all(session: CtlSession) -> Iterator[Finding]:
    yield from unit(_properties())
    yield from _daemon(session)
    try:
        settings = session.settings()
    except Problem as problem:
        yield Finding("settings", "bad", f"{problem.code}: {problem.reason}", problem.hint or "latticed --check-config")
    else:
        yield _helper(settings.apply.socket)
        yield disk(str(settings.state_dir))
    yield journal(there=os.path.exists("/run/systemd/journal/socket"))
    yield clock(synchronised=_synchronised())


def _properties() -> dict[str, str] | None:
    """What systemd says of the unit; None where it is not process 1, or does not answer."""
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return None
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            ["/usr/bin/systemctl", "show", UNIT, SOCKET, f"--property={','.join(_SHOWN)}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SYSTEMCTL_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # A block of lines for each, with an empty line between.
    own, _, socket = done.stdout.decode("utf-8", "replace").partition("\n\n")
    shown = dict(line.split("=", 1) for line in own.splitlines() if "=" in line)
    # Either of them is enough for a start at boot: the socket starts the daemon for its first client.
    if "UnitFileState=enabled" in socket:
        shown["UnitFileState"] = "enabled"
    return shown


def unit(shown: Mapping[str, str] | None) -> Iterator[Finding]:
    """What the unit lacks, by its properties (systemctl(1), show)."""
    if shown is None:
        yield Finding("unit", "off", "systemd does not run here")
        return
    if shown.get("LoadState") != "loaded":
        state = shown.get("LoadState") or "not known"
        yield Finding(
            "unit", "off", f"{UNIT} is {state}", "apt install latticed, or latticed's systemd/latticed.service"
        )
        return
    lacking = list(_lacking(shown))
    yield from lacking or [Finding("unit", "ok", f"{UNIT} is {shown.get('ActiveState')}")]


def _lacking(shown: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with a unit that is installed."""
    if shown.get("ActiveState") != "active":
        why = f"{UNIT} is {shown.get('ActiveState')}"
        yield Finding("unit", "bad", why, f"systemctl start {UNIT}; journalctl -u {UNIT} says why not")
    if shown.get("UnitFileState") not in {"enabled", "enabled-runtime", "static", "indirect"}:
        yield Finding("unit", "look", "it is not started at the next boot", f"systemctl enable {UNIT}")
    if shown.get("NeedDaemonReload") == "yes":
        yield Finding("unit", "look", "its file was changed since systemd read it", "systemctl daemon-reload")
    if shown.get("Delegate") != "yes":
        found = f"Delegate={shown.get('Delegate')}: plugins have no control groups of their own"
        yield Finding("unit", "look", found, f"systemctl revert {UNIT}, or set Delegate=yes")
    allowed = shown.get("RestrictNamespaces", "no")
    if allowed != "no" and not set(allowed.split()).issuperset(_NAMESPACES):
        found = f"RestrictNamespaces={allowed}: plugins cannot be isolated"
        yield Finding("unit", "look", found, f"systemctl revert {UNIT}, or set RestrictNamespaces=no")


def _daemon(session: CtlSession) -> Iterator[Finding]:
    """The daemon's own problems, its sandbox, and what ends soon; only the first line when it does not answer."""
    settings: Settings | None = None
    try:
        # Where its socket is may be for the settings to say, and they may be bad.
        health = replies.mapping(session.client().health(), "health")
    except Problem as problem:
        yield Finding("daemon", "bad", problem.reason, problem.hint)
        return
    with contextlib.suppress(Problem):  # said below
        settings = session.settings()
    yield from daemon(health, settings)
    yield from sandbox(health)
    try:
        yield from _keys(session)
    except Problem as problem:
        yield Finding("keys", "off", f"not looked at: {problem.reason}", problem.hint)


def daemon(health: Mapping[str, Any], settings: Settings | None = None) -> Iterator[Finding]:
    """The problems of a health report, and what is active and does not run. `settings`: of the same host, if known."""
    problems = replies.rows(health.get("problems") or [], "list of problems")
    for row in problems:
        known = codes.text_of(str(row.get("code")))
        helps = codes.shown(known.command) if known is not None else "latticectl health"
        helps = helps if settings is None else codes.placed(helps, settings)
        yield Finding("daemon", "bad", f"{row.get('code')}: {row.get('detail')}", helps)
    if stopped := replies.counts(health.get("not_running")):
        yield Finding("plugins", "look", f"not running {stopped}", "latticectl list; latticectl explain ID")
    if not problems:
        yield Finding("daemon", "ok", f"answers, status {health.get('status')}")


def sandbox(health: Mapping[str, Any]) -> Iterator[Finding]:
    """The level that plugins get, and why it is not the highest."""
    given = health.get("sandbox")
    if not isinstance(given, dict):  # shown to the scope `read` alone
        yield Finding("sandbox", "off", "not shown to you", "run this as root, or with the scope read")
        return
    missing = replies.rows(given.get("missing") or [], "list of steps")
    if given.get("level") == "isolated" and not missing:
        yield Finding("sandbox", "ok", "isolated, with all features")
    for row in missing:
        name = "cgroups" if row.get("token") == "cgroup" else "sandbox"
        yield Finding(name, "look", f"no {row.get('token')}: {row.get('step')}", str(row.get("fix") or ""))


def _keys(session: CtlSession) -> Iterator[Finding]:
    """Keys, indexes and bundles that end within two weeks (`latticectl trust horizon`)."""
    from latticed.ctl import trust_horizon

    soon = [row for row in trust_horizon.found(session) if row.soon(session.screen.now_s)]
    for row in soon:
        yield Finding("keys", "look", f"{row.what} {row.name}: {row.effect}", "latticectl trust horizon")
    if not soon:
        yield Finding("keys", "ok", "nothing ends within 14 days")


def _helper(path: str) -> Finding:
    """Whether the root helper answers at its socket, where it is installed."""
    from latticed.ctl.root_helper import HelperClient

    if not os.path.exists(path):
        found = f"no latticed-apply at {path}: plans cannot be applied"
        return Finding("helper", "off", found, "systemctl enable --now latticed-apply, where plans are wanted")
    try:
        kinds = HelperClient(path, "").observe().get("kinds")
    except Problem as problem:
        denied = problem.code in {"denied", "socket_denied"}
        return Finding("helper", "off" if denied else "bad", problem.reason, problem.hint)
    names = ", ".join(map(str, kinds)) if isinstance(kinds, dict | list) else ""
    return Finding("helper", "ok", f"applies {names}" if names else "answers, and may apply nothing")


def disk(directory: str) -> Finding:
    """The room in the file system of the state directory."""
    try:
        found = os.statvfs(directory)
    except FileNotFoundError:
        return Finding("disk", "off", f"{directory} does not exist yet")
    except OSError as error:
        return Finding("disk", "look", f"{directory}: {error.strerror}", "run this as root, or as the daemon's user")
    free, whole = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    shown = f"{directory} has {free >> 20} MiB left of {whole >> 20}"
    if free < LOW_BYTES and free < LOW_SHARE * whole:
        # In this order: on a full disk latticed itself can remove nothing.
        helps = (
            f"remove other files (du -xh {shlex.quote(directory)}), then latticectl notify prune, audit.calls.max_bytes"
        )
        return Finding("disk", "look", shown, helps)
    return Finding("disk", "ok", shown)


def journal(*, there: bool) -> Finding:
    """Whether there is a journal to read the logs in."""
    if there:
        return Finding("journal", "ok", "journald takes the logs: journalctl -t latticed")
    return Finding("journal", "off", "no journald: the daemon's log goes where its stdout goes")


def clock(*, synchronised: bool | None) -> Finding:
    """Signatures do not need the time; ages of indexes, schedules and certificates do."""
    if synchronised is None:
        return Finding("clock", "off", "the kernel does not say whether it is synchronised")
    if synchronised:
        return Finding("clock", "ok", "synchronised")
    return Finding("clock", "look", "not synchronised", "timedatectl set-ntp true")


def _synchronised() -> bool | None:
    """What the kernel says of the clock (adjtimex(2) with nothing to change); None when it does not."""
    with contextlib.suppress(OSError, AttributeError):
        answer = int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
        return None if answer < 0 else answer != _TIME_ERROR
    return None
