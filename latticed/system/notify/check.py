"""Whether a configuration means something. Pure; what its JSON Schema can say is said there, and here again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from latticed.model.errors import Problem
from latticed.system.notify.intent import FanoutIntent, NotifyRule, Quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_FIELDS: Final = frozenset({"title", "body", "sender", "event", "severity", "host", "count", "id"})
"""What templates may name."""
FIELD: Final = re.compile(r"\{\{([^{}]*)\}\}")
_HINT: Final = "latticectl config set latticed.notify -f FILE"


def read(plain: Mapping[str, Any]) -> FanoutIntent:
    """The configuration, or Problem("config_invalid") that names the field."""
    intent = payload(plain, FanoutIntent)
    for name in intent.channels:
        if not _NAME.fullmatch(name):
            raise _bad(f"channels: expected names of a-z, 0-9 and -, 32 characters at most, found {name[:40]!a}")
    if not intent.channels:
        raise _bad("channels: expected one at least")
    _known("default", intent.default, intent)
    if not intent.default:
        raise _bad("default: expected one channel at least, for what no rule takes")
    for place, rule in enumerate(intent.rules):
        _known(f"rules[{place}].channels", rule.channels, intent)
        if rule.quiet is not None:
            _check_quiet(f"rules[{place}].quiet", rule.quiet)
        for where, name in _named(rule):
            if name not in _FIELDS:
                expected = ", ".join(sorted(_FIELDS))
                raise _bad(f"rules[{place}].{where}: expected one of {expected} in braces, found {name[:40]!a}")
    return intent


def payload(plain: Any, kind: type[T]) -> T:
    """`plain` as a `kind`; Problem("config_invalid") that names the field."""
    try:
        return msgspec.convert(plain if not hasattr(plain, "keys") else dict(plain), kind)
    except msgspec.ValidationError as error:
        raise _bad(str(error)) from error


def zone(name: str) -> ZoneInfo | None:
    """The time zone of that name (tz database), None for one that there is not."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # also a path, or a directory of zones
        return None


def _check_quiet(where: str, quiet: Quiet) -> None:
    for name, value in (("start", quiet.start), ("end", quiet.end)):
        if not _TIME.fullmatch(value):
            raise _bad(f"{where}.{name}: expected a time such as 22:00, found {value[:20]!a}")
    if quiet.start == quiet.end:
        raise _bad(f"{where}: expected an end that is not the start, found {quiet.end}")
    if zone(quiet.zone) is None:
        raise _bad(f"{where}.zone: expected a time zone such as Europe/Berlin or UTC, found {quiet.zone[:60]!a}")


def _known(where: str, names: tuple[str, ...], intent: FanoutIntent) -> None:
    for name in names:
        if name not in intent.channels:
            found = ", ".join(sorted(intent.channels))
            raise _bad(f"{where}: expected one of the channels {found}, found {name[:40]!a}")


def _named(rule: NotifyRule) -> Iterator[tuple[str, str]]:
    for where, text in (("title", rule.title), ("body", rule.body)):
        yield from ((where, found[1]) for found in FIELD.finditer(text))


def _bad(reason: str) -> Problem:
    return Problem("config_invalid", reason, _HINT)
