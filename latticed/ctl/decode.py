"""Decodes the daemon's answers into the records of `wire`; Problem("bad_reply") for unexpected ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from latticed import wire
from latticed.ctl import replies

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")


def _record(kind: type[T], plain: Any, what: str) -> T:
    """`plain` as a record of type `kind`; Problem bad_reply for missing fields or another type."""
    try:
        return wire.decode(kind, replies.mapping(plain, what))
    except TypeError as error:
        raise replies.bad(what) from error


def plugin(plain: Any) -> wire.PluginView:
    """One PluginView with its nested records."""
    found = dict(replies.mapping(plain, "plugin"))
    runtime = dict(replies.mapping(found.get("runtime"), "runtime"))
    if runtime.get("last_error") is not None:
        runtime["last_error"] = _record(wire.ErrorInfo, runtime["last_error"], "last_error")
    found["runtime"] = _record(wire.RuntimeView, runtime, "runtime")
    if found.get("candidate") is not None:
        candidate = dict(replies.mapping(found["candidate"], "candidate"))
        if candidate.get("bad") is not None:
            candidate["bad"] = _record(wire.BadView, candidate["bad"], "candidate")
        found["candidate"] = _record(wire.CandidateView, candidate, "candidate")
    if found.get("upgrade") is not None:
        found["upgrade"] = _record(wire.UpgradeView, found["upgrade"], "upgrade")
    return _record(wire.PluginView, found, "plugin")


def plugins(plain: Any) -> Iterator[wire.PluginView]:
    """The decoded rows of a list of plugins, one at a time."""
    return (plugin(row) for row in replies.rows(plain, "list of plugins"))


def rejected(plain: Any) -> Iterator[wire.RejectedView]:
    """The decoded rows of a list of refused bundles, one at a time."""
    return (
        _record(wire.RejectedView, row, "rejected bundle") for row in replies.rows(plain, "list of rejected bundles")
    )


def event(plain: Any) -> wire.AuditRow:
    """One decoded audit event."""
    return _record(wire.AuditRow, plain, "audit event")
