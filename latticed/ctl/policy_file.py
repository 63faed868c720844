"""trust.json as latticectl reads and edits it: with the caller's own rights, in one step, never half written."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from latticed.kit import files, trusted
from latticed.model.errors import Problem
from latticed.trust import policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES: Final = 1 << 20
_MODE: Final = 0o644


def read(path: Path) -> policy.TrustPolicy:
    """The policy in `path`; Problem "policy_unreadable" or "policy_invalid" (contracts §4; by its writers too)."""
    try:
        data = trusted.read(path, MAX_BYTES, owners=frozenset({0, os.geteuid()}))
    except FileNotFoundError as error:
        raise Problem(
            "policy_unreadable", f"expected a trust policy at {path}, found no file", "latticectl trust add makes one"
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Problem("policy_unreadable", f"cannot read the trust policy {path}: {why}") from error
    except trusted.Foreign as fault:
        hint = "only root or you may be able to change it"
        raise Problem("policy_invalid", f"cannot trust {path}: {fault}", hint) from fault
    try:
        return policy.decode(data)
    except Problem as problem:
        raise Problem(problem.code, f"{path}: {problem.detail}", problem.hint) from problem


@contextlib.contextmanager
def editing(path: Path) -> Iterator[policy.TrustPolicy]:
    """The policy in `path` (an empty one when there is no file) while no other latticectl edits it."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory = files.open_directory(path.parent.resolve())
    except OSError as error:
        raise _denied(path, error) from error
    with files.closing(directory):
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield read(path) if path.exists() else policy.NOBODY


def write(path: Path, new: policy.TrustPolicy) -> None:
    """Replace `path`, links in it followed, or make it (mode 0644); Problem "policy_denied" when the caller may not."""
    data = policy.encode(new)
    policy.decode(data)  # what is written must be what will be read
    try:
        files.replace(path.resolve(), data, mode=_MODE)
    except OSError as error:
        raise _denied(path, error) from error


def _denied(path: Path, error: OSError) -> Problem:
    hint = "run this as the owner of the trust policy (root)" if isinstance(error, PermissionError) else ""
    return Problem("policy_denied", f"cannot write {path}: {error.strerror or error}", hint)
