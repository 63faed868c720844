r"""The root helper's socket as latticectl uses it: one line of JSON each way (contracts §12).

    {"verb": "review", "plan": "3f0c…", "source": "192.0.2.7"}
    {"plan": "3f0c…", "review": "91aa…", "diff": "--- live\n+++ plan\n…", …}

The messages are those of the helper's own protocol; here they stay plain JSON, since latticectl imports nothing of
the daemon. The peer must be root: nothing is sent to anybody else.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from latticed.client import bounded_socket
from latticed.client.bounded_socket import BoundedSocket
from latticed.ctl import replies
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latticed.ctl.session import CtlSession

CONNECT_S: Final = 5.0
ANSWER_S: Final = 125.0
"""For a whole answer; an apply takes the helper 120 s at most (`OPERATION_S` of its protocol)."""
MAX_ANSWER_BYTES: Final = 8 << 20
"""Longest answer, as the helper's protocol has it."""
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_STATUS: Final = {"denied": 403, "not_found": 404}
_START: Final = "start it: systemctl start latticed-apply, or in another terminal: sudo latticed-apply"


class HelperFault(Problem):
    """The helper refused or failed; `status` is the HTTP status that fits the code, for the exit code.

    `findings`: the faults of an intent, as `{code, path, expected, found, hint}`.
    """

    def __init__(self, code: str, reason: str, hint: str, findings: list[dict[str, Any]]) -> None:
        super().__init__(code, reason, hint)
        self.status = _STATUS.get(code, 409)
        self.findings = findings


class HelperClient:
    """Asks the root helper at `path`. `source`: the address that this session comes from, or empty.

    Problems: unreachable, socket_denied, socket_foreign (not root), bad_reply; HelperFault for what it refuses.
    """

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.source = source

    def observe(self) -> dict[str, Any]:
        """`{kinds, targets, plans}`: what the helper can apply, what its targets hold, and the plans that it keeps."""
        return self._ask({"verb": "observe"})

    def review(self, plan: str) -> dict[str, Any]:
        """`{plan, kind, target, state, review, diff, intent, narrows, findings, overridden}`: what an operator has to
        see. An older helper sends no findings.
        """
        return self._ask({"verb": "review", "plan": plan, "source": self.source})

    def approve(self, plan: str, review: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """Approve the plan as reviewed, in spite of findings with the codes `overrides`.

        `{plan, state, review, deadline_s, message}`, as of the following ones.
        """
        asked = {"verb": "approve", "plan": plan, "review": review, "source": self.source}
        return self._ask({**asked, "overrides": list(overrides)} if overrides else asked)

    def apply(self, plan: str, confirm_within_s: int) -> dict[str, Any]:
        """Apply the plan; the answer comes when it is unconfirmed, applied or undone. 0 s: as the settings say."""
        asked = {"verb": "apply", "plan": plan, "confirm_within_s": confirm_within_s, "source": self.source}
        return self._ask(asked)

    def decide(self, verb: str, plan: str) -> dict[str, Any]:
        """`refuse`, `confirm` or `rollback`."""
        return self._ask({"verb": verb, "plan": plan})

    def whole(self, given: str) -> str:
        """The name of the one plan that begins with `given` (8 digits or more); Problems usage, not_found."""
        if not is_prefix(given):
            raise Problem("usage", f"PLAN: expected 8 to 64 hex digits, found {given[:80]!r}", "latticectl plan list")
        given = given.lower()
        if len(given) == _DIGITS:
            return given
        found = [name for name in names(self.observe()) if name.startswith(given)]
        if not found:
            hint = "latticectl plan list shows them; one that is planned again comes back"
            raise Problem("not_found", f"the root helper keeps no plan {given}…", hint)
        if len(found) > 1:
            raise Problem("usage", f"{len(found)} plans begin with {given}", f"they are {', '.join(found)}")
        return found[0]

    def _ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer."""
        try:
            line = self._exchange(json.dumps(asked).encode("ascii") + b"\n")
            answer = replies.mapping(json.loads(line), "object")
        except OSError as error:
            raise self._lost(error, str(asked["verb"])) from error
        except (ValueError, RecursionError) as error:
            raise Problem("bad_reply", "the root helper's answer is not JSON", "are both of one version?") from error
        if "code" in answer:
            findings = replies.rows(answer.get("findings") or [], "list of findings")
            code, message, hint = (str(answer.get(name) or "") for name in ("code", "message", "hint"))
            raise HelperFault(code, message, hint, findings)
        return answer

    def _exchange(self, line: bytes) -> bytes:
        """One line for one line; OSError, Problems socket_foreign, bad_reply."""
        with BoundedSocket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as wire:
            wire.settimeout(CONNECT_S)
            wire.connect(self.path)
            uid = _CREDENTIALS.unpack(wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
            if uid != 0:
                detail = f"{self.path} is served by uid {uid}, expected root; nothing was sent"
                raise Problem("socket_foreign", detail, "[apply] socket in the settings says where the helper listens")
            wire.within(ANSWER_S, MAX_ANSWER_BYTES)
            wire.sendall(line)
            with wire.makefile("rb") as reader:
                received = reader.readline(MAX_ANSWER_BYTES + 1)
            if not received.endswith(b"\n"):
                if len(received) > MAX_ANSWER_BYTES:
                    raise bounded_socket.reply_too_long()
                raise ConnectionResetError("the root helper closed the connection before it answered")
            return received

    def _lost(self, error: OSError, verb: str) -> Problem:
        """The Problem for a request without an answer."""
        where = f"it was looked for at {self.path} ([apply] socket)"
        unsure = "latticectl plan list shows what became of it" if verb in _CHANGING else _START
        match error:
            case FileNotFoundError() | ConnectionRefusedError() | NotADirectoryError():
                return Problem("unreachable", "the root helper is not running", f"{_START}; {where}")
            case PermissionError():
                hint = "run this as root, or be named in [apply] approvers"
                return Problem("socket_denied", "the root helper may be running, but you may not use its socket", hint)
            case TimeoutError() | BlockingIOError():
                return Problem("unreachable", f"the root helper did not answer within {ANSWER_S:g} s", unsure)
            case ConnectionError():
                # It closes the connection of whom it does not know, without an answer.
                hint = f"are you root, or named in [apply] approvers? {unsure}"
                return Problem("unreachable", "the root helper closed the connection before it answered", hint)
            case _:
                return Problem("unreachable", f"cannot talk to the root helper at {self.path}: {error}", where)


_DIGITS: Final = 64
_SHORTEST: Final = 8
_CHANGING: Final = frozenset({"approve", "refuse", "apply", "confirm", "rollback"})


def is_prefix(given: str) -> bool:
    """Whether this can be the beginning of a plan's name, or all of it: 8 to 64 hex digits."""
    return _SHORTEST <= len(given) <= _DIGITS and is_hex(given)


def is_hex(given: str) -> bool:
    """Whether there are hexadecimal digits only, at least one."""
    return bool(given) and all(char in "0123456789abcdefABCDEF" for char in given)


def is_digest(given: str) -> bool:
    """Whether it is a whole SHA-256 in hex, as plans and reviews are named."""
    return len(given) == _DIGITS and is_hex(given)


def names(observed: dict[str, Any]) -> list[str]:
    """The names of the plans in a report."""
    return [str(one.get("plan") or "") for one in replies.rows(observed.get("plans"), "list of plans")]


def of(session: CtlSession) -> HelperClient:
    """The client for the socket that the settings name."""
    # The first of four words: client address and port, server address and port (sshd(8)).
    source = (session.environ.get("SSH_CONNECTION") or "").split(" ")[0]
    # sshd's word for a connection that is no socket of the network, as `sshd -i` behind a pipe has it.
    return HelperClient(session.settings().apply.socket, "" if source == "UNKNOWN" else source)
