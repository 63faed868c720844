"""What this host really gives: throw-away children at every level, once per boot (architecture: measured, not guessed).

Each probe takes all the steps of a plugin's start and executes a program; the first failing step is the result.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.sandbox import (
    artifact,
    cgroup,
    elf_programs,
    host_facts,
    landlock,
    launch,
    levels,
    rlimits,
    spec,
    syscalls,
)
from latticed.sandbox.cgroup import Delegation
from latticed.sandbox.host_facts import Probed
from latticed.sandbox.levels import Chosen, Failure, Level, Provided

if TYPE_CHECKING:
    from latticed.sandbox.artifact import Artifact
    from latticed.sandbox.host_facts import HostFacts
    from latticed.sandbox.syscalls import Machine

DEADLINE_S: Final = 10.0
"""How long, in seconds, one child of the probe may take before it is killed."""
PROBE_IDS: Final = spec.Ids(uid=65533, gid=65533)
# EINVAL: fcntl(2) with F_DUPFD and a number above RLIMIT_NOFILE, as `launch` moves descriptors.
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EINVAL})
_PAUSE_S: Final = 0.001  # between two looks at the child
_ANSWER: Final = 42  # an exit code that no failing program or stub gives by chance
_SHELL: Final = "/bin/sh"


def probe(ids: spec.Ids = PROBE_IDS) -> Probed:
    """Try every level, as the user `ids` if the daemon may change uids; return what this host gives and why no more.

    Blocks for 0.1 s; main thread only. Failures of steps are part of the result, not exceptions.
    """
    machine = syscalls.machine()
    here = host_facts.look()
    if machine is None:
        failure = Failure(token=Level.FILTERED.token, step=f"no system call table for {os.uname().machine}")
        return _nothing(syscalls.X86_64, here, failure)
    # Asked directly: without Landlock no level can be reached, and this errno says why.
    abi, error = landlock.version(machine)
    if not abi:
        step = "landlock_create_ruleset"
        fix = levels.fix(step, error, here.host)
        return _nothing(machine, here, Failure(token=Level.FILTERED.token, step=step, errno=error, fix=fix))
    bare = Probed(machine=machine, standing=here, landlock=abi, delegation=None, provided=Provided(level=Level.OPEN))
    with artifact.of_bytes(elf_programs.exits_42(machine)) as program:
        reached, failures = _climb(bare, program, ids)
        # Last, since claiming a group moves the daemon; and only when children can be confined at all.
        divided = _divide(bare, program, ids) if reached >= Level.FILTERED else None
    delegation = divided if isinstance(divided, Delegation) else None
    if isinstance(divided, Failure):
        failures.append(divided)
    features = features_at(reached, whole_tree=delegation is not None)
    provided = Provided(level=reached, features=features, failures=(*failures, *_missing(features, failures)))
    return replace(bare, delegation=delegation, provided=provided)


def features_at(level: Level, *, whole_tree: bool) -> frozenset[str]:
    """The features at `level`; `whole_tree`: a cgroup can kill everything that a child started."""
    if level < Level.FILTERED:
        return frozenset()
    features = {levels.THREADS}
    if level >= Level.ISOLATED:
        features |= {levels.PROCESSES, levels.WORKDIR, levels.NETWORK}
    if whole_tree:
        features |= {levels.PROCESSES, levels.CGROUP}
    return frozenset(features)


def _missing(features: frozenset[str], failures: list[Failure]) -> list[Failure]:
    """A failure for each feature that is missing and has none of its own: what stopped the climb explains it."""
    named = {failure.token for failure in failures}
    absent = sorted(levels.FEATURES - features - named)
    return [replace(failures[0], token=token) for token in absent if failures]


def _climb(bare: Probed, program: Artifact, ids: spec.Ids) -> tuple[Level, list[Failure]]:
    """The highest level that a child was executed at, and the failure of the next; none at the highest of all.

    `bare`: the host's facts, with nothing found yet; `ids` as of `probe`.
    """
    reached = Level.OPEN
    for level in (Level.FILTERED, Level.ISOLATED):
        failure = _try(bare, level, program, ids)
        if failure is not None:
            return reached, [failure]
        reached = level
    if bare.standing.other_ids:  # the children above had an own uid already
        return Level.DEDICATED, []
    fix = levels.fix("setresuid", errno.EPERM, bare.standing.host)
    return reached, [Failure(token=Level.DEDICATED.token, step="setresuid", errno=errno.EPERM, fix=fix)]


def _divide(bare: Probed, program: Artifact, ids: spec.Ids) -> Delegation | Failure:
    """The delegation, with its controllers enabled, after a child was executed in a group of its own; or what failed.

    May move the daemon into a group of its own (`cgroup.claim`). `bare` and `ids` as of `_climb`.
    """
    found = cgroup.find()
    if isinstance(found, Failure):
        return found
    try:
        delegation = cgroup.claim(found)
        # At `filtered`: a host may refuse namespaces and still delegate a group.
        failure = _try(replace(bare, delegation=delegation), Level.FILTERED, program, ids)
    except OSError as error:
        return Failure(token=levels.CGROUP, step="making a cgroup", errno=error.errno or 0, fix=cgroup.FIX)
    return delegation if failure is None else replace(failure, token=levels.CGROUP)


def _try(so_far: Probed, level: Level, program: Artifact, ids: spec.Ids) -> Failure | None:
    """Execute `program` in a child at `level`, with what `so_far` has found; None when it ran, else the Failure."""
    # A root daemon that may not change uids must fail here: its child would be uid 0.
    own_uid = so_far.standing.uid == 0 or so_far.standing.other_ids
    subject: Artifact | spec.Program = program
    if (
        not program.executable and level < Level.ISOLATED
    ):  # vm.memfd_noexec=2: scripts and the host's programs still run
        subject = _host_program()
    request = spec.ChildRequest(program=subject, limits=rlimits.ResourceLimits(), ids=ids if own_uid else None)
    # With /scratch too: mounting it is a step that a host may refuse.
    features = {levels.THREADS} | ({levels.WORKDIR} if level >= Level.ISOLATED else set())
    host = so_far.standing.host
    plan = spec.build(request, Chosen(level=level, features=frozenset(features)), so_far)
    try:
        report, answer = run(plan)
    except OSError as error:
        fix = "children need a few hundred descriptors: raise LimitNOFILE" if error.errno in _NO_DESCRIPTORS else ""
        return Failure(token=level.token, step="starting a child", errno=error.errno or 0, fix=fix)
    if report.stage is None and answer == _ANSWER:
        return None
    step = report.stage or f"executing a program (it ended with {answer}, expected {_ANSWER})"
    return Failure(token=level.token, step=step, errno=report.errno, fix=levels.fix(step, report.errno, host))


def _host_program() -> spec.Program:
    """A program of the host to exit with 42: the shell, readable by every user, or this Python."""
    if os.path.exists(_SHELL):
        return spec.Program(path=_SHELL, args=("-c", f"exit {_ANSWER}"))
    return spec.Program(path=sys.executable, args=("-ISEB", "-c", f"raise SystemExit({_ANSWER})"))


def run(plan: spec.ChildSpec, *, deadline_s: float = DEADLINE_S) -> tuple[launch.LaunchReport, int]:
    """Run a child on /dev/null and block until it ends; return the stub's report and the exit code (-N: signal N).

    A child that has not ended after `deadline_s` is killed.
    """
    group = cgroup.make(plan.delegation, plan.limits) if plan.delegation is not None else None
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        started = launch.launch(plan, dict.fromkeys((0, 1, 2), null), cgroup=group.procs if group else None)
        try:
            return _wait(started, time.monotonic() + deadline_s)
        finally:
            os.close(started.status)
    finally:
        os.close(null)
        if group is not None:
            group.close()
            group.remove()  # everything in it was reaped above


def _wait(started: launch.Launched, deadline: float) -> tuple[launch.LaunchReport, int]:
    """Reap the stub's process group; kill it at the deadline. Returns the stub's report and the exit code of its child,
    negative for a signal.

    Nothing is reaped before, so the group's id is not reused.
    """
    answers: dict[int, int] = {}
    received = b""
    while True:
        received += launch.read_status(started.status) or b""
        try:
            ended = os.waitid(os.P_PGID, started.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # all of the group has been reaped
            break
        if ended is None:
            if time.monotonic() > deadline:
                os.killpg(started.pid, signal.SIGKILL)
            select.select([], [], [], _PAUSE_S)
            continue
        os.waitid(os.P_PID, ended.si_pid, os.WEXITED)
        answers[ended.si_pid] = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
    report = started.report(received + (launch.read_status(started.status) or b""))
    return report, answers.get(report.pid or started.pid, -signal.SIGKILL)


def _nothing(machine: Machine, here: HostFacts, failure: Failure) -> Probed:
    """The result for a host where no child can be confined, for the reason `failure`."""
    return Probed(
        machine=machine,
        standing=here,
        landlock=0,
        delegation=None,
        provided=Provided(level=Level.OPEN, failures=(failure, *_missing(frozenset(), [failure]))),
    )
