"""What a tunnel is made of: its id, the name of its credentials, and ordered ingress rules, of which the first that
matches counts. `tunnel.put` and the plugin cloudflared judge by the same rules.

cloudflared's own validation takes duplicate names, other schemes, malformed ids and unknown keys.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from latticed.model import hosts

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RULES: Final = 64
"""Ingress rules of one tunnel."""
ID_EXPECTED: Final = "a tunnel's id, such as 6ff42ae2-765d-4adf-8112-31c55c1551ef"
FILE_EXPECTED: Final = "the name of a file in the operator's directory"
PATH_EXPECTED: Final = "a path of letters, digits and ._~/- that begins with /, and no .."
NAME_EXPECTED: Final = "a public name as hostname, no address and no local name"
SERVICE_EXPECTED: Final = "a service http://host:port, https://host:port or http_status:404"
LAST_EXPECTED: Final = "a last rule without hostname and path: it takes what is left, as http_status:404 does"
_STATUS: Final = re.compile(r"http_status:[2-5][0-9]{2}")
# Plain prefixes. cloudflared takes regular expressions; of these characters only the dot means something there, and
# what writes its configuration escapes it.
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]{0,255}")
# No slash: the file is in the operator's directory itself.
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ORIGIN: Final = re.compile(r"(https?)://(\[[^\[\]]*\]|[^\[\]:/?#@\\\s]+)(?::([1-9][0-9]{0,4}))?", re.IGNORECASE)
_PORTS: Final = {"http": 80, "https": 443}
_HIGHEST_PORT: Final = 65_535


class RuleLike(Protocol):
    """Three texts: what comes for `hostname` and `path` goes to `service`."""

    @property
    def service(self) -> str: ...
    @property
    def hostname(self) -> str: ...
    @property
    def path(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelRule:
    """One rule in normal form: `hostname` a name or `*.name`, `path` what paths begin with; either empty: any.
    `service`: `http://host:port`, `https://host:port`, always with its port, or `http_status:404`.
    """

    service: str
    hostname: str = ""
    path: str = ""

    @property
    def origin(self) -> tuple[str, str, int] | None:
        """(scheme, host, port) of the service; None for a status."""
        return origin_of(self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFault:
    """What is wrong with the rules: at `index` (None: with all of them), there in `field` (empty: the whole rule)."""

    index: int | None = None
    field: str = ""
    code: str
    expected: str


def normal_id(text: str) -> str | None:
    """A tunnel's id in lower case; None for anything but the canonical form."""
    try:
        # uuid.UUID also takes braces, "urn:uuid:" and missing hyphens; only the canonical form compares equal below.
        plain = str(uuid.UUID(text))
    except ValueError:
        return None
    return plain if plain == text.lower() else None


def is_file(text: str) -> bool:
    """Whether a text can name a file of credentials."""
    return _FILE.fullmatch(text) is not None


def is_status(service: str) -> bool:
    """Whether a service is an answer of cloudflared's own, such as http_status:404, and leads nowhere."""
    return _STATUS.fullmatch(service) is not None


def origin_of(service: str) -> tuple[str, str, int] | None:
    """(scheme, host in normal form, port) of a service; None for a status, and for what is none."""
    found = _ORIGIN.fullmatch(service)
    if found is None:
        return None
    scheme = found[1].lower()
    port = int(found[3]) if found[3] else _PORTS[scheme]
    try:
        host = hosts.normal(found[2])
    except hosts.NotAHost:
        return None
    return (scheme, host, port) if port <= _HIGHEST_PORT else None


def judged(rules: Sequence[RuleLike]) -> tuple[tuple[TunnelRule, ...], list[RuleFault]]:
    """The rules in normal form, and all that is wrong with them; with faults the rules mean nothing.

    "*.example.org" before "a.example.org"              hidden_rule: the second never matches
    "a.example.org", path "/x/y" before path "/x"       fine
    """
    if not 1 <= len(rules) <= MAX_RULES:
        return (), [RuleFault(code="rule_count", expected=f"1 to {MAX_RULES} rules")]
    faults: list[RuleFault] = []
    made = [_normal(rule, index, faults) for index, rule in enumerate(rules)]
    bad = {one.index for one in faults}
    last = made[-1]
    if len(made) - 1 not in bad and (last.hostname or last.path):
        faults.append(RuleFault(code="no_last_rule", expected=LAST_EXPECTED))
    # Each rule is compared with all before it; MAX_RULES bounds the time.
    for index, rule in enumerate(made):
        for other, before in enumerate(made[:index]):
            if bad.isdisjoint({index, other}) and _hides(before, rule):
                expected = f"one that rule {other + 1} leaves something to, which takes the same"
                faults.append(RuleFault(index=index, code="hidden_rule", expected=expected))
                break
    return tuple(made), faults


def _normal(rule: RuleLike, index: int, faults: list[RuleFault]) -> TunnelRule:
    if rule.path and not (_PATH.fullmatch(rule.path) and ".." not in rule.path):
        faults.append(RuleFault(index=index, field="path", code="bad_path", expected=PATH_EXPECTED))
    hostname = _hostname(rule.hostname, index, faults)
    return TunnelRule(hostname=hostname, path=rule.path, service=_service(rule.service, index, faults))


def _hostname(text: str, index: int, faults: list[RuleFault]) -> str:
    """A public name, also `*.name`, in normal form, or empty."""
    if not text:
        return ""
    wild, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    expected = NAME_EXPECTED
    try:
        plain = hosts.normal(name)
        if hosts.address_of(plain) is None and "." in plain:
            return wild + plain
    except hosts.NotAHost as error:
        expected = f"a hostname: {error}"
    faults.append(RuleFault(index=index, field="hostname", code="bad_hostname", expected=expected))
    return ""


def _service(text: str, index: int, faults: list[RuleFault]) -> str:
    """A service in normal form. Origins are bound without path, query and fragment."""
    if is_status(text):
        return text
    if (found := origin_of(text)) is not None:
        scheme, host, port = found
        return f"{scheme}://{hosts.bracketed(host)}:{port}"
    faults.append(RuleFault(index=index, field="service", code="bad_service", expected=SERVICE_EXPECTED))
    return ""


def _hides(before: TunnelRule, rule: TunnelRule) -> bool:
    """Whether everything that `rule` is for matches `before` already; an empty hostname is any."""
    pattern, hostname = before.hostname, rule.hostname
    named = pattern in ("", hostname) or (pattern.startswith("*.") and hostname.endswith(pattern[1:]))
    return named and rule.path.startswith(before.path)
