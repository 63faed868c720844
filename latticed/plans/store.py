"""The helper's own directory: plans, targets, secrets, snapshots, renderings, its key. Root's alone, blocking.

    state/lock.<kind>          held (flock) by whoever changes a target: helper or dead-man
    state/key                  32 bytes, for the HMACs of secrets
    state/plans/<sha>.json     PlanRecord         state/secrets/<sha>.json   {reference: value}
    state/targets/<kind>.json  Target             state/held/<id>.<what>     snapshots and renderings
    state/steps/               the chain of steps (`plans.steps`)
    state/reserve              given back to a full disk before an undo is recorded

Everything is 0600 below directories of 0700, written beside and renamed, with fsync. OSErrors come out as they are:
callers know what a failure means at their point.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets as random
import stat
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.plans.records import PlanRecord, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T = TypeVar("T")
_FOLDERS: Final = ("plans", "secrets", "targets", "held", "steps")
_RESERVE_BYTES: Final = 256 << 10
"""Room for two records, a step and their directory blocks, on a disk that is full otherwise."""
_MAX_BYTES: Final = 16 << 20
"""Of one file: the largest is a snapshot, as long as a program's output may be (`plans.programs`)."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_POLL_S: Final = 0.02
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Store:
    """The files below `directory`. `open` makes what is missing. One process at a time changes them: see `locked`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.steps = directory / "steps"
        self._targets: dict[str, tuple[tuple[int, int, int], Target]] = {}

    def open(self) -> None:
        """Make directories, key and reserve where they are missing, and remove what killed writes left. OSError."""
        for name in _FOLDERS:
            (self._directory / name).mkdir(mode=0o700, exist_ok=True)
        if not (self._directory / "key").exists():
            files.replace(self._directory / "key", random.token_bytes(32), mode=0o600)
        for folder in (self._directory, *(self._directory / name for name in _FOLDERS)):
            for name in os.listdir(folder):
                # The names of `files.replace`, half written when its process was killed. A dead-man that is writing one
                # right now fails, and tries again.
                if re.fullmatch(r"\..+\.[0-9a-f]{12}", name):
                    self._remove(folder / name)
        self._sweep()
        self.refill()

    def key(self) -> bytes:
        """The helper's key. Problem state_unusable when it is not 32 bytes: the reviews of before would not hold."""
        found = files.read_at_most(self._directory / "key", 1024)
        if len(found) != 32:
            raise Problem("state_unusable", f"expected 32 bytes in {self._directory / 'key'}, found {len(found)}")
        return found

    @contextlib.contextmanager
    def locked(self, kind: str, *, deadline_s: float) -> Iterator[int]:
        """Hold the lock of a kind's target and plans; gives its descriptor, which programs inherit: while one that an
        ended helper has started still runs, nobody else begins. Problem busy after `deadline_s`.

        One for each kind: a change that takes long must not keep the dead-man of another kind waiting.
        """
        path = self._directory / f"lock.{kind}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with files.closing(fd):
            lock(fd, deadline_s)
            yield fd

    # Plans

    def plans(self) -> list[PlanRecord]:
        """All plans that are kept; a file that cannot be read as one is none."""
        names = [name.removesuffix(".json") for name in sorted(os.listdir(self._directory / "plans"))]
        return [one for name in names if (one := self.plan(name)) is not None]

    def plan(self, name: str) -> PlanRecord | None:
        """One plan, or None."""
        if not _SHA256.fullmatch(name):
            return None
        return self._read(self._directory / "plans" / f"{name}.json", PlanRecord)

    def put_plan(self, plan: PlanRecord) -> None:
        """Write a plan."""
        self._write(self._directory / "plans" / f"{plan.plan}.json", plan)

    def remove_plan(self, name: str) -> None:
        """Remove a plan and its secrets."""
        self.remove_secrets(name)
        self._remove(self._directory / "plans" / f"{name}.json")

    # Secrets

    def secrets(self, name: str) -> dict[str, str]:
        """The values of a plan's secrets by reference; Problem state_unusable when they are gone."""
        found = self._read(self._directory / "secrets" / f"{name}.json", dict[str, str])
        if found is None:
            raise Problem("state_unusable", f"the secrets of plan {name[:12]} are gone", "have it planned again")
        return found

    def put_secrets(self, name: str, values: dict[str, str]) -> None:
        """Write the values of a plan's secrets."""
        self._write(self._directory / "secrets" / f"{name}.json", values)

    def remove_secrets(self, name: str) -> None:
        """Remove them."""
        self._remove(self._directory / "secrets" / f"{name}.json")

    # Targets

    def target(self, kind: str) -> Target:
        """What a kind's target holds; an empty one where nothing was ever applied. Problem state_unusable when the file
        is there and cannot be understood: guessing would forget what has to be undone.
        """
        path = self._directory / "targets" / f"{kind}.json"
        try:
            seen = path.stat()
        except FileNotFoundError:
            return Target(kind=kind)
        # Each write makes another inode. Looked at twice a second while something is unconfirmed.
        mark = (seen.st_ino, seen.st_mtime_ns, seen.st_size)
        if (known := self._targets.get(kind)) is not None and known[0] == mark:
            return known[1]
        found = self._read(path, Target)
        if found is None:
            raise Problem("state_unusable", f"{path} cannot be understood", "restore it, or remove it by hand")
        self._targets[kind] = (mark, found)
        return found

    def put_target(self, target: Target) -> None:
        """Write it: the one moment at which a change is armed, kept or undone."""
        self._write(self._directory / "targets" / f"{target.kind}.json", target)

    # Snapshots and renderings

    def hold(self, apply_id: str, what: str, data: bytes) -> None:
        """Keep bytes as `what` (snapshot, rendering) of an apply. Problem state_unusable: there are too many."""
        if len(data) > _MAX_BYTES:
            raise Problem("state_unusable", f"expected a {what} of at most {_MAX_BYTES} bytes, found {len(data)}")
        files.replace(self._directory / "held" / f"{apply_id}.{what}", data, mode=0o600)

    def held(self, apply_id: str, what: str) -> bytes:
        """The bytes that `hold` kept; OSError."""
        return files.read_at_most(self._directory / "held" / f"{apply_id}.{what}", _MAX_BYTES)

    def is_held(self, apply_id: str, what: str) -> bool:
        """Whether `hold` keeps them; a disk that cannot be read counts as yes."""
        try:
            (self._directory / "held" / f"{apply_id}.{what}").stat()
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def let_go(self, apply_id: str, what: str) -> None:
        """Remove them."""
        self._remove(self._directory / "held" / f"{apply_id}.{what}")

    # Room

    def spend_reserve(self, error: OSError) -> bool:
        """Give the reserve back to a disk that is full by `error`; whether that may have helped."""
        path = self._directory / "reserve"
        if error.errno not in _FULL or not path.exists():
            return False
        with contextlib.suppress(OSError):
            path.unlink()
            return True
        return False

    def refill(self) -> None:
        """Make the reserve again, if there is room; real blocks, not a hole."""
        path = self._directory / "reserve"
        if path.exists():
            return
        with contextlib.suppress(OSError):
            files.replace(path, os.urandom(_RESERVE_BYTES), mode=0o600)

    def _sweep(self) -> None:
        """Remove snapshots, renderings and secrets that nothing refers to: a kill came between two writes."""
        needed: set[str] = set()
        for name in os.listdir(self._directory / "targets"):
            target = self.target(name.removesuffix(".json"))
            needed |= {f"{target.rendering}.rendering"}
            if target.armed is not None:
                needed |= {f"{target.armed.apply_id}.{what}" for what in ("snapshot", "rendering")}
        for name in set(os.listdir(self._directory / "held")) - needed:
            self._remove(self._directory / "held" / name)
        known = {plan.plan for plan in self.plans() if plan.macs}
        for name in os.listdir(self._directory / "secrets"):
            if name.removesuffix(".json") not in known:
                self._remove(self._directory / "secrets" / name)

    def _write(self, path: Path, value: Any) -> None:
        files.replace(path, json.dumps(msgspec.to_builtins(value)).encode("ascii") + b"\n", mode=0o600)

    def _read(self, path: Path, kind: type[T]) -> T | None:
        """The value of a file, None when it is missing or not what was written; OSError for anything else."""
        try:
            return msgspec.convert(json.loads(files.read_at_most(path, _MAX_BYTES)), kind, strict=True)
        except (FileNotFoundError, ValueError, RecursionError):
            return None

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def lock(fd: int, deadline_s: float) -> None:
    """Take the lock of an open file (flock(2)); Problem busy after `deadline_s`."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise Problem("busy", "another process of the root helper is changing something") from error
            time.sleep(_POLL_S)
        else:
            return


def check_place(directory: Path) -> None:
    """Problem settings_invalid unless root alone can change `directory` and everything above it.

    With that nobody else can swap anything below it, so plain paths are safe there. Directories that do not exist yet
    are judged by the first one that does.
    """
    if ".." in directory.parts:
        raise Problem("settings_invalid", f"{directory}: expected a path without '..'")
    for place in (directory, *directory.parents):
        try:
            found = place.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Problem("settings_invalid", f"{place}: {error.strerror}") from error
        sticky = place != directory and found.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(found.st_mode):
            raise Problem("settings_invalid", f"{place}: expected a directory, found {stat.filemode(found.st_mode)}")
        if found.st_uid != 0 or (found.st_mode & 0o022 and not sticky):
            owner, mode = found.st_uid, stat.S_IMODE(found.st_mode)
            raise Problem(
                "settings_invalid",
                f"{place}: expected a directory that root alone can change, found uid {owner} and mode {mode:04o}",
                f"sudo chown root {place} && sudo chmod go-w {place}",
            )
