"""Configuration, answers of the journal and what was remembered, read strictly. Pure."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from latticed.model.errors import Problem
from latticed.system.ssh_alerts.intent import Allow, Page, Rules, State

if TYPE_CHECKING:
    from datetime import tzinfo

    from latticed.model.addresses import Network

MAX_CURSOR: Final = 1_024
"""As many as node.journal takes."""
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ID: Final = re.compile(r"[0-9a-f]{8,64}")
_HOURS: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)", re.ASCII)
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


class _Allow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    users: tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...] = ()
    networks: tuple[str, ...] = ()
    hours: tuple[str, ...] = ()
    days: tuple[Day, ...] = ()


class _Failures(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    count: Annotated[int, Meta(ge=2, le=50)] = 5
    within_s: Annotated[int, Meta(ge=10, le=86_400)] = 600


class Document(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration as it is written."""

    allow: Annotated[tuple[_Allow, ...], Meta(max_length=64)] = ()
    time_zone: str = "UTC"
    failures: _Failures = _Failures()
    tell: Literal["every", "unusual"] = "every"
    poll_s: Annotated[int, Meta(ge=1, le=60)] = 10


def document(plain: Any) -> Document:
    """The configuration in JSON values, or Problem("config_invalid") that names the field."""
    try:
        return msgspec.convert(plain, Document)
    except msgspec.ValidationError as error:
        raise Problem("config_invalid", f"the configuration: {error}") from error


def rules(found: Document, zone: tzinfo) -> Rules:
    """The configuration's rules, or Problem("config_invalid") that names the field; `zone` is that of `time_zone`."""
    return Rules(
        allow=tuple(_allow(one, f"allow[{place}]") for place, one in enumerate(found.allow)),
        zone=zone,
        failures=found.failures.count,
        window_s=found.failures.within_s,
        tell=found.tell,
        poll_s=found.poll_s,
    )


def page(plain: Any) -> Page:
    """An answer of node.journal, or ValueError: the reader handles what any program logs."""
    found = msgspec.convert(plain, Page)
    if any(not _ID.fullmatch(entry.id) for entry in found.entries):
        raise ValueError("id: expected hexadecimal digits")
    if not 1 <= len(found.cursor) <= MAX_CURSOR:
        raise ValueError(f"cursor: expected at most {MAX_CURSOR} characters")
    return found


def state(data: bytes) -> State:
    """What `encoded` gave; ValueError for anything else."""
    return msgspec.json.decode(data, type=State)


def encoded(found: State) -> bytes:
    return msgspec.json.encode(found)


def _allow(found: _Allow, path: str) -> Allow:
    return Allow(
        users=found.users,
        networks=tuple(_network(text, f"{path}.networks[{place}]") for place, text in enumerate(found.networks)),
        hours=tuple(_hours(text, f"{path}.hours[{place}]") for place, text in enumerate(found.hours)),
        days=tuple(DAYS.index(day) for day in found.days),
    )


def _network(text: str, path: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        expected = "a network without host bits, as 203.0.113.0/24 or 2001:db8::/32"
        raise Problem("config_invalid", f"{path}: expected {expected}, found {text[:50]!a}") from error


def _hours(text: str, path: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text)
    begin, end = (int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])) if found else (0, 0)
    if begin == end or max(begin, end) > 1_440:
        expected = 'hours as "08:00-18:30" or "22:00-06:00"; 24:00 is the latest'
        raise Problem("config_invalid", f"{path}: expected {expected}, found {text[:20]!a}")
    return begin, end
