"""Parameters of tunnel.put, validated once: hosts in normal form, services that the operator bound to the plugin.

cloudflared's own validation accepts duplicate hosts, other schemes, malformed ids and unknown keys.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.host.call import HostError, Params
from latticed.host.egress import url
from latticed.host.program.spec import bad, check_name, encode
from latticed.model import egress, hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.egress import Origin

__all__ = ["IngressRule", "TunnelPut", "TunnelSpec", "bound", "checked", "decode", "encode"]

MAX_RULES: Final = 64
"""Ingress rules of one tunnel."""
_STATUS: Final = re.compile(r"http_status:([2-5][0-9]{2})")
# Plain prefixes. cloudflared takes regular expressions; of these characters only the dot means something there, and
# `files.render` escapes it.
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]{0,255}")
# No slash: the file is in the operator's directory itself.
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class IngressRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: what comes for `hostname` (a name or `*.name`) and `path` (what paths begin with) goes to `service`;
    either empty: any. `service`: `http://host:port`, `https://host:port` of an origin that the operator bound, or
    `http_status:404`.
    """

    service: str
    hostname: str = ""
    path: str = ""


class TunnelPut(Params, frozen=True):
    """Parameters of tunnel.put. `tunnel`: its id; `ingress`: rules, of which the first that matches counts;
    `credentials` or `token`: the name of a file in the operator's directory.
    """

    name: str
    tunnel: str
    ingress: tuple[IngressRule, ...]
    credentials: str = ""
    token: str = ""


class TunnelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """As `TunnelPut`, checked. `file` holds credentials, or (`is_token`) a token.

    Its JSON is stored in the ledger (`encode`): a field that is added needs a default, or stored rows no longer decode.
    """

    tunnel: str
    ingress: tuple[IngressRule, ...]
    file: str
    is_token: bool


def checked(asked: TunnelPut, origins: Iterable[Origin]) -> TunnelSpec:
    """The spec; HostError bad_params names the field or rule and what was expected, egress_blocked says that a service
    is none of `origins`. Whether the credentials are usable is not checked here.
    """
    check_name(asked.name)
    if bool(asked.credentials) == bool(asked.token):
        raise bad("credentials", "exactly one of credentials and token")
    if not _FILE.fullmatch(file := asked.credentials or asked.token):
        raise bad("credentials", "the name of a file in the operator's directory")
    rules = tuple(_rule(one, number) for number, one in enumerate(asked.ingress, start=1))
    _check_order(rules)
    spec = TunnelSpec(tunnel=_id(asked.tunnel), ingress=rules, file=file, is_token=bool(asked.token))
    # Only for its HostError; the origins are looked up anew at each start, as grants may be withdrawn.
    bound(spec, origins)
    return spec


def decode(stored: str) -> TunnelSpec:
    """What `encode` wrote; msgspec.ValidationError or DecodeError for anything else."""
    return msgspec.json.decode(stored, type=TunnelSpec)


def bound(spec: TunnelSpec, origins: Iterable[Origin]) -> dict[str, Origin]:
    """The origin of each service of a spec, by its text; HostError egress_blocked when one is not bound (any more).
    Services `http_status:…` have none.
    """
    # By what a rule names. The address is not compared: the operator chose it with the origin.
    known = {(one.scheme, one.host, one.port): one for one in origins}
    found: dict[str, Origin] = {}
    for rule in spec.ingress:
        if _STATUS.fullmatch(rule.service):
            continue
        target = url.parse(rule.service)
        if (origin := known.get(target.origin)) is None:
            message = f"service: the operator has not bound {rule.service} to this plugin"
            raise HostError(Denial.EGRESS_BLOCKED, message, fix=_fix(rule.service))
        found[rule.service] = origin
    return found


def _fix(service: str) -> str:
    """What the operator could grant to bind a service: `origin=…` when its host is an address, else empty, as only the
    operator knows the address.
    """
    try:
        return f"origin={egress.origin(service)}"
    except ValueError:
        return ""


def _id(text: str) -> str:
    """A tunnel's id in lower case; HostError bad_params."""
    try:
        # uuid.UUID also takes braces, "urn:uuid:" and missing hyphens; only the canonical form compares equal below.
        plain = str(uuid.UUID(text))
    except ValueError:
        plain = ""
    if plain != text.lower():
        raise bad("tunnel", "a tunnel's id, such as 6ff42ae2-765d-4adf-8112-31c55c1551ef")
    return plain


def _rule(rule: IngressRule, number: int) -> IngressRule:
    """A rule in normal form; HostError bad_params naming it by `number`, from 1."""
    where = f"ingress rule {number}"
    if rule.path and not (_PATH.fullmatch(rule.path) and ".." not in rule.path):
        raise bad(where, "a path of letters, digits and ._~/- that begins with /, and no ..")
    return IngressRule(hostname=_hostname(rule.hostname, where), path=rule.path, service=_service(rule.service, where))


def _hostname(text: str, where: str) -> str:
    """A public name, also `*.name`, in normal form, or empty; HostError bad_params."""
    if not text:
        return ""
    wild, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        plain = hosts.normal(name)
    except hosts.NotAHost as error:
        raise bad(where, f"a hostname: {error}") from error
    if hosts.address_of(plain) is not None or "." not in plain:
        raise bad(where, "a public name as hostname, no address and no local name")
    return wild + plain


def _service(text: str, where: str) -> str:
    """A service in normal form, always with its port; HostError bad_params."""
    if _STATUS.fullmatch(text):
        return text
    if not text.lower().startswith(("http://", "https://")):
        raise bad(where, "a service http://host:port, https://host:port or http_status:404")
    try:
        target = url.parse(text)
    except HostError as error:
        raise HostError(Denial.BAD_PARAMS, f"{where}: {error.reason}") from error
    # Origins are bound without path, query and fragment.
    if target.path != "/" or text.endswith("/") or "#" in text:
        raise bad(where, "a service without a path")
    return f"{target.scheme}://{target.shown}"


def _check_order(rules: tuple[IngressRule, ...]) -> None:
    """HostError bad_params unless the last rule matches everything and no rule hides a later one.

    "*.example.org" before "a.example.org"              refused: the second never matches
    "a.example.org", path "/x/y" before path "/x"       fine
    """
    if not 1 <= len(rules) <= MAX_RULES:
        raise bad("ingress", f"1 to {MAX_RULES} rules")
    if rules[-1].hostname or rules[-1].path:
        raise bad("ingress", "a last rule without hostname and path: it takes what is left, as http_status:404 does")
    # Each rule is compared with all before it; MAX_RULES bounds the time.
    for number, rule in enumerate(rules, start=1):
        for other, before in enumerate(rules[: number - 1], start=1):
            if _covers(before.hostname, rule.hostname) and rule.path.startswith(before.path):
                raise bad(f"ingress rule {number}", f"one that rule {other} leaves something to, which takes the same")


def _covers(pattern: str, hostname: str) -> bool:
    """Whether every name that `hostname` stands for matches `pattern`; an empty pattern is any."""
    return pattern in ("", hostname) or (pattern.startswith("*.") and hostname.endswith(pattern[1:]))
