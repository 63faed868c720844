"""Secrets in the intents of plans: only as references, since intents are stored and shown as given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.secret.references import REFERENCE
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECRET: Final = re.compile(
    r"(?:.*_)?(?:private_?key|pre_?shared_?key|psk|secret|secret_?key|password|passwd|passphrase|token|api_?key"
    r"|access_?key|auth_?key|client_?secret|credentials?)s?"
)
"""Names of fields that hold a secret, in the form that `is_secret` gives them; `_file`, `_path` and `_name` after one
of them make it something else.
"""
# Where a word ends: before a capital letter, and at separators.
_WORDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]")
_PEM: Final = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")


def check(intent: dict[str, Any]) -> None:
    """HostError bad_params naming the first field that holds a secret in clear; never its value.

        {"password": "hunter2"}                  refused: intent.password
        {"password": "${secret:DB}"}             fine
        {"password_file": "/etc/db"}             fine
        {"note": "-----BEGIN PRIVATE KEY-----…"} refused, whatever the field's name is

    A check against mistakes: a secret in a field with a harmless name is not recognised.
    """
    for where, name, value in _texts(intent, "intent", ""):
        if _PEM.search(value) or (value and is_secret(name) and not REFERENCE.fullmatch(value)):
            expected = "expected a secret as a reference such as ${secret:NAME}, found one in clear"
            raise HostError(Denial.BAD_PARAMS, f"{where}: {expected}")


def references(intent: dict[str, Any]) -> frozenset[str]:
    """Those texts anywhere in an intent that contain a reference to a secret, such as `${secret:NAME}`; whole and
    unchanged.
    """
    return frozenset(value for _, _, value in _texts(intent, "intent", "") if REFERENCE.search(value))


def is_secret(name: str) -> bool:
    """Whether a field of this name holds a secret, in any spelling: `privateKey`, `PRIVATE_KEY` and `wg-private-key`
    do, `private_key_file` does not.
    """
    return _SECRET.fullmatch(_WORDS.sub("_", name).lower()) is not None


def _texts(value: Any, where: str, name: str) -> Iterator[tuple[str, str, str]]:
    """(path, field name, text) of all texts beneath `value`, and of numbers in secret fields.

    {"peers": [{"psk": "x"}]}   ->  ("intent.peers[0].psk", "psk", "x")
    {"token": {"value": "x"}}   ->  ("intent.token.value", "token", "x"): the name is that of the outer secret field
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            # Everything within a secret field is a secret, whatever the keys in it are called.
            inner_name = name if is_secret(name) else key
            # Cut: keys are the plugin's, and the path gets into a message.
            yield from _texts(inner, f"{where}.{key}"[:200], inner_name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{index}]"[:200], name)
    elif isinstance(value, str):
        yield where, name, value
    # A PIN may be given as a number; a boolean is none (bool is a subclass of int).
    elif isinstance(value, int) and not isinstance(value, bool) and is_secret(name):
        yield where, name, str(value)
