"""Parameters of task.submit, validated once."""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal

from latticed.host.call import HostError, Params, Whole
from latticed.host.secret.references import REFERENCE
from latticed.kit import text
from latticed.model.hostcall import Denial

Interpreter = Literal["sh", "bash", "python3", "node"]
INTERPRETERS: Final = ("sh", "bash", "python3", "node")
MAX_SCRIPT_BYTES: Final = 64 << 10
"""Of the script in UTF-8."""
TIMEOUT_S: Final = (1, 600)
"""The shortest and the longest timeout, in seconds."""
# Arguments of a script, and characters of one.
MAX_TARGETS: Final = 32
MAX_TARGET_CHARACTERS: Final = 256
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class TaskSubmit(Params, frozen=True):
    """Parameters of task.submit."""

    interpreter: Interpreter
    """What runs the script."""
    script: str
    """The script itself, 64 KiB at most."""
    targets: tuple[str, ...] = ()
    """Its arguments, texts of visible characters."""
    timeout_s: Whole = 30
    """Seconds after which it is ended: 1 to 600."""
    name: str = ""
    """For people."""


def checked(asked: TaskSubmit) -> bytes:
    """The script's bytes in UTF-8; HostError bad_params, or too_large for the script. Pure."""
    try:
        # JSON can carry lone surrogates (RFC 8259, section 8.2), which UTF-8 cannot.
        script = asked.script.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _bad("script", "text without lone surrogates") from error
    if len(script) > MAX_SCRIPT_BYTES:
        found = f"found {len(script)}"
        raise HostError(Denial.TOO_LARGE, f"script: expected at most {MAX_SCRIPT_BYTES} bytes, {found}")
    # Interpreters treat a NUL differently: some skip it, others refuse the file.
    if not asked.script.strip() or "\0" in asked.script:
        raise _bad("script", "some text without NUL")
    low, high = TIMEOUT_S
    if not low <= asked.timeout_s <= high:
        raise _bad("timeout_s", f"{low} to {high}")
    if asked.name and not _NAME.fullmatch(asked.name):
        raise _bad("name", "1 to 64 letters, digits, '.', '_', '-', first a letter or digit")
    if len(asked.targets) > MAX_TARGETS:
        raise _bad("targets", f"at most {MAX_TARGETS}")
    for target in asked.targets:
        # Visible characters only: the operator must see the arguments as the script gets them.
        if not 1 <= len(target) <= MAX_TARGET_CHARACTERS or text.escape(target) != target:
            raise _bad("targets", f"texts of 1 to {MAX_TARGET_CHARACTERS} visible characters")
    if any(REFERENCE.search(one) for one in (asked.script, *asked.targets)):
        raise _bad("script", "no ${secret:NAME}: a script is shown to people and kept, so none is filled in")
    return script


def sha256(script: bytes) -> str:
    """The digest that an operator approves, lowercase hex."""
    return hashlib.sha256(script).hexdigest()


def _bad(name: str, expected: str) -> HostError:
    return HostError(Denial.BAD_PARAMS, f"{name}: expected {expected}")
