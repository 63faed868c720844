"""Validation of plugins' replies, the same for both protocols (pure)."""

from __future__ import annotations

from typing import Any, Final

from latticed.kit import text
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners import output
from latticed.runners.contract import Checkup

MESSAGE_CHARACTERS: Final = 2_000
"""How much is kept of a text that a plugin answers with; the rest is cut off."""
_STATUSES: Final = frozenset({Health.HEALTHY.value, Health.DEGRADED.value, Health.UNHEALTHY.value})


def checkup(answer: Any) -> Checkup:
    """The result `{status, message}` of a health check. Anything else counts as unhealthy, with the reason."""
    status = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(status, str) or status not in _STATUSES:
        found = text.sanitise(str(status), 40)
        message = f"expected a status of {', '.join(sorted(_STATUSES))}, found {found!r}"
        return Checkup(health=Health.UNHEALTHY, message=message)
    said = answer.get("message")
    return Checkup(health=Health(status), message=said_text(said))


def unreadable_checkup(problem: Problem) -> Checkup:
    """The result for a health answer that JSON cannot represent: the plugin is alive, so this is not unhealthy."""
    return Checkup(health=Health.DEGRADED, message=problem.reason)


def reply(answer: Any) -> dict[str, Any]:
    """The answer `{ok, message, result, error}` to an invocation, as decoded; only `ok` is required.

    `message` and `error` are made texts of a bounded length, other members are dropped. Problem("protocol_error") when
    it is no such object.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("ok"), bool):
        raise Problem("protocol_error", "expected a reply with ok, message and result, found something else")
    error = answer.get("error")
    return {
        "ok": answer["ok"],
        "message": said_text(answer.get("message")),
        "result": answer.get("result"),
        "error": None if error is None else said_text(error),
    }


def said_text(words: Any) -> str:
    """`words` as a text for people, cut to MESSAGE_CHARACTERS; "" for None. It is not escaped."""
    return text.clip(words if isinstance(words, str) else "" if words is None else str(words), MESSAGE_CHARACTERS)


def too_late(limit_s: float, *, log_waits: bool = False) -> Problem:
    """Problem("deadline_exceeded") for an invocation without a reply after `limit_s` seconds.

    `log_waits`: the plugin may be waiting for its log to be read, which is done at a bounded rate.
    """
    if log_waits:
        kib = int(output.RATE.per_second) >> 10
        why = f"it writes more to its log (stderr) than the {kib} KiB a second that are read, and waits meanwhile"
        found = f"expected a reply within {limit_s:g} s, found none: {why}"
        return Problem("deadline_exceeded", found, f"write less: of a line {output.LINE_CHARACTERS:,} bytes are kept")
    hint = "the manifest's runtime.limits.invoke_timeout_s may ask for more, up to plugin_limits.max_invoke_timeout_s"
    return Problem("deadline_exceeded", f"expected a reply within {limit_s:g} s, found none", hint)
