"""The controller of a fleet, as verbs below `latticectl fleet` ask it: its socket, its times, what it is sent."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from latticed.client.control import READ_S, AskedServer, ControlClient
from latticed.ctl import replies
from latticed.ctl.table import Cell
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ctl.arguments import Parser
    from latticed.ctl.render import Screen
    from latticed.ctl.session import CtlSession

VARIABLE: Final = "LATTICED_CONTROLLER"
SOCKET: Final = "/run/latticed-controller/control.sock"
"""Where the packaged controller listens."""
CONTROLLER: Final = AskedServer(
    name="the controller",
    unit="latticed-controller",
    option=f"--controller or {VARIABLE}",
    group="[access] of its settings",
    look="latticectl fleet status",
)
MOST_ENVELOPE_BYTES: Final = 256 << 10
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TONES: Final = {
    **dict.fromkeys(("settled", "done", "well", "valid"), "good"),
    **dict.fromkeys(("pending", "away", "waiting", "unassigned", "halted", "returning", "missing"), "warn"),
    **dict.fromkeys(("unwell", "returned", "expired", "revoked", "blocked"), "bad"),
    "refused": "bad",
}
"""Tones of a node's states, a rollout's, and a certificate's."""


def add_arguments(parser: Parser) -> None:
    """The option of each verb that asks the controller."""
    parser.add_argument(
        "--controller",
        metavar="PATH",
        type=str,
        default="",
        help=f"the controller's socket ({VARIABLE}; default {SOCKET})",
    )


def client(session: CtlSession, *, read_s: float = READ_S) -> ControlClient:
    """A client for the controller's socket; `read_s`: seconds to wait for an answer."""
    path = session.args.controller or session.environ.get(VARIABLE) or SOCKET
    return ControlClient(path, read_s=read_s, asked=CONTROLLER)


def word(value: object) -> Cell:
    """A state in its colour."""
    said = str(value or "")
    return Cell(said, _TONES.get(said, ""))


def moment(screen: Screen, seconds: object) -> str:
    """Seconds since 1970 as the user wants times; empty for 0, which stands for never."""
    if not isinstance(seconds, int | float) or not 0 < seconds < 1 << 37:
        return ""
    return screen.when(datetime.fromtimestamp(seconds, UTC).isoformat())


def short(sha256: object) -> str:
    """The beginning of a digest, by which it can be named."""
    return str(sha256 or "")[:12]


def envelope(path: str, what: str) -> dict[str, Any]:
    """The signed document in a file, not verified; Problems not_found, io_error, usage."""
    hint = f"latticectl fleet sign writes {what}"
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_ENVELOPE_BYTES + 1)
        found = json.loads(data) if len(data) <= MOST_ENVELOPE_BYTES else None
    except FileNotFoundError as error:
        raise Problem("not_found", f"expected {what} at {path}, found nothing", hint) from error
    except OSError as error:
        raise Problem("io_error", f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or set(found) != {"payload", "signature", "key"}:
        raise Problem("usage", f"expected {what} in {path}, found something else", hint)
    return found


def send(asked: ControlClient, document: dict[str, Any]) -> dict[str, Any]:
    """Hand a signed document over to the controller, which judges and keeps it; what became of it."""
    return replies.mapping(asked.post("fleet", "documents", body=document), "document")


def intent(session: CtlSession, asked: ControlClient, given: str) -> str:
    """The SHA-256 of the intent that `given` is: a file, which is handed over, or the beginning of a SHA-256."""
    if _SHA256.fullmatch(given):
        return given
    if not os.path.lexists(given) and re.fullmatch(r"[0-9a-f]{8,63}", given):
        return _begins(asked, given)
    taken = send(asked, envelope(given, "a signed intent"))
    if taken.get("kind") != "intent":
        raise Problem(
            "usage", f"expected an intent in {given}, found: {taken.get('kind')}", "it was handed over all the same"
        )
    for note in replies.texts(taken.get("notes")):
        session.screen.note(note)
    return str(taken.get("sha256") or "")


def _begins(asked: ControlClient, given: str) -> str:
    rows = replies.rows(replies.mapping(asked.get("fleet", "intents"), "intents").get("intents"), "list of intents")
    found = [str(one.get("sha256")) for one in rows if str(one.get("sha256")).startswith(given)]
    if len(found) != 1:
        detail = f"expected the beginning of one intent's SHA-256, found {len(found)} that begin with {given}"
        raise Problem("not_found", detail, "give more of it, or the signed file")
    return found[0]
