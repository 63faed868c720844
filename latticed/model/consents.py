"""Parses what operators accept by name: a capability, or `KIND=VALUE` (contracts §8). Pure.

latticectl and the control API read them by the same rules. A kind of permit is added in `model.permits`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from latticed.model import egress, permits

if TYPE_CHECKING:
    from collections.abc import Iterable

_T = TypeVar("_T")

TERMS: Final = {
    "limit": "limit=memory_mib:512 (or another limit of the manifest; :default for the settings' own)",
    "level": "level=filtered: the least sandbox level (or isolated, dedicated, default)",
    "schedule": "schedule=disk@every_s:60@check: as latticectl info shows it",
}
"""Kinds that accept what a manifest asks for, each with an example."""
AT_UPGRADE: Final = {
    "type": "type=system (or wasm, worker)",
    "protocol": "protocol=latticed-stdio-1",
    "interpreter": "interpreter=/usr/bin/env python3: the script's first line without #!, or ELF",
    "args": "args=--verbose: all arguments, as in a shell",
    "dependency": "dependency=acme.base: the id of a plugin that it depends on",
}
"""The same, of what a plugin is: named when another version is taken or started, never granted alone."""
KINDS: Final = {
    "cap": "cap=http:egress",
    "host": "host=api.example.org:443 (*: ports 80 and 443)",
    **permits.EXPECTED,
    **TERMS,
}
"""What `caps grant` takes; an upgrade and an activation take AT_UPGRADE too."""
LIMITS: Final = (
    "memory_mib",
    "cpu_percent",
    "processes",
    "open_files",
    "invoke_timeout_s",
    "host_calls_per_s",
    "stdout_kib",
    "fuel",
)
"""The limits of a manifest that can be named; a copy, so that latticectl need not import the manifest's types."""
_LIMIT: Final = re.compile(rf"(?:{'|'.join(LIMITS)}):(?:[1-9][0-9]{{0,14}}|default)", re.ASCII)
"""At most 15 digits: exact in JSON for every reader."""
LEVELS: Final = ("filtered", "isolated", "dedicated")
"""Those that can be named, the weakest first; without `open`, which only the permit `sandbox=open` gives."""


class BadConsent(ValueError):
    """A text that is neither a capability nor a known KIND=VALUE; the message says what was expected and found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What was named, each once and in order: capabilities, hosts in normal form (or `*`), `kind=value` permits.

    `terms` are (kind, value) of what a manifest asks for: TERMS, AT_UPGRADE, and `feature` and `prefix`, which are
    permits too for a plugin whose manifest does not ask for them.
    """

    caps: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    permits: tuple[str, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.caps or self.hosts or self.permits or self.terms)

    @property
    def words(self) -> tuple[str, ...]:
        """All of it but the capabilities as `kind=value`, as it was named."""
        hosts = (f"host={host}" for host in self.hosts)
        return (*hosts, *self.permits, *(f"{kind}={value}" for kind, value in self.terms))

    @property
    def needs_host_scope(self) -> bool:
        """Whether hosts, permits or a lower level of confinement are among them (contracts §7)."""
        return bool(self.hosts or self.permits) or any(kind in {"feature", "level"} for kind, _ in self.terms)


def parse(texts: Iterable[str], *, upgrading: bool = True) -> Named:
    """What `texts` name, by kind; a text without `=` is a capability. BadConsent for what cannot be accepted by name.

    `["kv:read", "host=api.example.org:443"]` names a capability and a host. Whether the manifest declares it is not
    judged here. Without `upgrading` AT_UPGRADE is refused.
    """
    known = {**KINDS, **AT_UPGRADE} if upgrading else KINDS
    caps: list[str] = []
    hosts: list[str] = []
    allowed: list[str] = []
    terms: list[tuple[str, str]] = []
    for text in texts:
        kind, equals, value = text.partition("=")
        if not equals:
            kind, value = "cap", text
        if kind not in known:
            raise BadConsent(f"expected one of {', '.join(f'{one}=…' for one in known)}, found {text[:80]!r}")
        match kind:
            case "cap":
                caps.append(value)
            case "host":
                hosts.append(_host(value))
            # Terms of a manifest that asks for them, permits otherwise; the lifecycle, which knows the manifest,
            # decides which.
            case "feature" | "prefix":
                _check_permit(text)
                terms.append((kind, value))
            case _ if kind in permits.EXPECTED:
                _check_permit(text)
                allowed.append(text)
            case _:
                terms.append((kind, _term(kind, value)))
    return Named(caps=_once(caps), hosts=_once(hosts), permits=_once(allowed), terms=_once(terms))


def _once(values: list[_T]) -> tuple[_T, ...]:
    """Each value once, in the order of its first place."""
    return tuple(dict.fromkeys(values))


def _host(value: str) -> str:
    """The host in normal form; BadConsent otherwise."""
    try:
        return egress.consent(value)
    except ValueError as error:
        raise BadConsent(str(error)) from error


def _check_permit(text: str) -> None:
    """BadConsent unless the text is a permit (`permits.fault`)."""
    if fault := permits.fault(text):
        raise BadConsent(fault)


def _term(kind: str, value: str) -> str:
    """The value of a term in normal form; BadConsent for one that the kind does not take."""
    fits = {"limit": _LIMIT.fullmatch(value) is not None, "level": value in {*LEVELS, "default"}}.get(kind, True)
    if not fits or (not value and kind != "args"):
        raise BadConsent(f"expected {({**KINDS, **AT_UPGRADE})[kind]}; found {f'{kind}={value}'[:80]!r}")
    # As `accepted.interpreter_of` writes it, so that the two compare equal.
    return " ".join(value.removeprefix("#!").split()) if kind == "interpreter" else value
