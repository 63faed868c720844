"""Advice on a plugin that is refused a start, or whose process fails. Pure."""

from __future__ import annotations

import shlex
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.ctl import codes, replies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed import wire


class Advice(NamedTuple):
    """The reason, and the command to run next; empty when there is nothing to do."""

    why: str
    command: str = ""


_UPGRADE: Final = "latticectl upgrade {id}"
_LOGS: Final = "latticectl logs {id}"
_NO_USE_TO_RETRY: Final = frozenset(
    """artifact_not_executable interpreter_not_allowed protocol_unsupported protocol_error message_too_large
    output_too_large source_blocked wasm_invalid wasm_import stack_overflow forbidden_call start_timeout
    sandbox_unavailable needs_config route_taken""".split()
)
"""Codes of what refuses or ended a plugin, where trying again alone is no use."""
_LIFTED_BY: Final = MappingProxyType(
    {
        "out_of_memory": "limit=memory_mib:",
        "cpu_exceeded": "limit=cpu_percent:",
        "output_too_large": "limit=stdout_kib:",
        "fuel_exhausted": "limit=fuel:",
        "deadline_exceeded": "limit=invoke_timeout_s:",
        "file_too_large": "feature=workdir",
    }
)
"""What lifts a failure of this code, where the manifest asks for more than was accepted (its `withheld`)."""


def refused(plugin_id: str, why: str, verb: str, refusal: Mapping[str, Any]) -> Advice:
    """Advice on the step `verb` that would be refused: the command in the daemon's hint if there is one.

    `why`: what led to that step. `refusal`: `{"code", "detail", "hint"}` as the daemon gave it.
    """
    code, detail, hint = (str(refusal.get(name) or "") for name in ("code", "detail", "hint"))
    said = f"{why}; it would be refused: {code}: {detail}"
    # Its hint names no command, and the option that consents is latticectl's own.
    if code == "version_downgrade":
        return Advice(said, shlex.join(["latticectl", verb, plugin_id, "--allow-downgrade"]))
    if hint.startswith("latticectl "):
        return Advice(said, hint)
    known = _known(code) or Advice("", "latticectl info {id}")
    words = "; ".join(part for part in (said, known.why, hint) if part)
    return Advice(words, known.command.format(id=plugin_id))


def failed(plugin_id: str, runtime: wire.RuntimeView, grants: Mapping[str, Any], found: Advice | None) -> Advice:
    """Advice on an active plugin that is not running; `found` is advice from its stderr (`sign`), if any.

    The cause that is known best wins: stderr, then a limit that can be granted, then the code.
    """
    error = runtime.last_error
    if found is not None:
        return found
    if error is not None and (lifted := _lifted(plugin_id, error, grants)) is not None:
        return lifted
    if error is not None and (known := _known(error.code)) is not None:
        return Advice(f"it failed ({error.code}): {known.why}: {error.message}", known.command.format(id=plugin_id))
    said = f" ({error.code})" if error is not None else ""
    if runtime.next_retry_at:
        wait = shlex.join(["latticectl", "wait", plugin_id, "--for", "active"])
        return Advice(f"it failed{said} and is started again by itself", wait)
    restart = shlex.join(["latticectl", "restart", plugin_id])
    return Advice(f"it failed{said} and is not tried again until an operator says so", restart)


def _known(code: str) -> Advice | None:
    """What the table of codes says of one where trying again is no use."""
    found = codes.text_of(code) if code in _NO_USE_TO_RETRY else None
    return Advice(found.why, found.command) if found is not None else None


def _lifted(plugin_id: str, error: wire.ErrorInfo, grants: Mapping[str, Any]) -> Advice | None:
    """Advice to grant a higher limit, when it failed at one and its manifest declares more than was accepted."""
    wanted = _LIFTED_BY.get(error.code)
    for one in replies.texts(grants.get("withheld") or []) if wanted else ():
        if one.startswith(str(wanted)):
            why = f"it failed ({error.code}), and asks for more than was accepted: {error.message}"
            return Advice(why, shlex.join(["latticectl", "caps", "grant", plugin_id, one]))
    return None


def sign(plugin_id: str, signs: Sequence[Mapping[str, Any]], permits: Sequence[str]) -> Advice | None:
    """Advice for the first of the daemon's `signs` that is known here, else None."""
    for one in signs:
        value = str(one.get("value") or "")
        match one.get("sign"):
            case "missing_module":
                why = f"it needs the module {value}, which plugins do not see: its publisher must pack it in"
                return Advice(f"{why}; with that bundle in the plugin directory", _UPGRADE.format(id=plugin_id))
            # With the feature granted the failure has another cause, which is not known here.
            case "cannot_fork" if "feature=processes" not in permits:
                why = "it wants to start processes, and its sandbox does not let it"
                return Advice(why, shlex.join(["latticectl", "caps", "grant", plugin_id, "feature=processes"]))
            case "cannot_thread" if "feature=threads" not in permits:
                why = "it wants to start threads, and its sandbox does not let it"
                return Advice(why, shlex.join(["latticectl", "caps", "grant", plugin_id, "feature=threads"]))
    return None
