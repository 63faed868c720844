"""Whether an intent means something. Pure."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from latticed.model.errors import Problem
from tests.house.system.allowlist.intent import Intent

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


def read(plain: Any) -> Intent:
    """The intent in JSON values, or Problem("bad_request") that names the field."""
    try:
        intent = msgspec.convert(plain, Intent)
    except msgspec.ValidationError as error:
        raise Problem("bad_request", f"the intent: {error}") from error
    seen: set[str] = set()
    for place, door in enumerate(intent.doors):
        for field, value in (("name", door.name), *((f"people[{n}]", one) for n, one in enumerate(door.people))):
            if _NAME.fullmatch(value) is None:
                raise Problem("bad_request", f"doors[{place}].{field}: expected a-z 0-9 -, found {value[:40]!a}")
        if door.name in seen:
            raise Problem("bad_request", f"doors[{place}].name: expected each door once, found {door.name} again")
        seen.add(door.name)
    return intent
