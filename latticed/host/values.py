"""Bytes in the JSON of host calls: a text, or base64 where they are not UTF-8."""

from __future__ import annotations

import base64

from latticed.host.call import HostError
from latticed.model.hostcall import Denial


def from_text_or_base64(text: str | None, coded: str | None, *, name: str) -> bytes:
    """The bytes of a parameter that is given as `name` (text) or as `name`_base64.

    HostError `bad_params` when both or none are given, or the base64 is malformed (RFC 4648 section 4, padded).
    """
    if (text is None) == (coded is None):
        raise HostError(Denial.BAD_PARAMS, f"expected exactly one of {name} and {name}_base64")
    if text is not None:
        return text.encode("utf-8")
    try:
        return base64.b64decode(coded or "", validate=True)
    except ValueError as error:
        raise HostError(Denial.BAD_PARAMS, f"{name}_base64: expected base64, found {error}") from error


def as_text(data: bytes) -> str | None:
    """`data` as text; None when it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
