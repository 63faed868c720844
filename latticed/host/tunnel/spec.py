"""Parameters of tunnel.put, validated once (`model.tunnel`): hosts in normal form, services that the operator bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from latticed.host.call import HostError, Params
from latticed.host.program.spec import bad, check_name, encode
from latticed.model import egress
from latticed.model import tunnel as model
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.egress import Origin

__all__ = ["IngressRule", "TunnelPut", "TunnelSpec", "bound", "checked", "decode", "encode"]


class IngressRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rule: what comes for `hostname` (a name or `*.name`) and `path` (what paths begin with) goes to `service`;
    either empty: any. `service`: `http://host:port`, `https://host:port` of an origin that the operator bound, or
    `http_status:404`.
    """

    service: str
    hostname: str = ""
    path: str = ""


class TunnelPut(Params, frozen=True):
    """Parameters of tunnel.put."""

    name: str
    """Name of the tunnel; names are a plugin's own."""
    tunnel: str
    """The tunnel's id at the provider."""
    ingress: tuple[IngressRule, ...]
    """Rules, of which the first that matches counts."""
    credentials: str = ""
    """Name of a file in `tunnel.credentials_dir`; this or `token`."""
    token: str = ""
    """Name of a file with a token."""


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
    if not model.is_file(file := asked.credentials or asked.token):
        raise bad("credentials", model.FILE_EXPECTED)
    rules, faults = model.judged(asked.ingress)
    if faults:
        index = faults[0].index
        raise bad("ingress" if index is None else f"ingress rule {index + 1}", faults[0].expected)
    if (tunnel := model.normal_id(asked.tunnel)) is None:
        raise bad("tunnel", model.ID_EXPECTED)
    ingress = tuple(IngressRule(hostname=one.hostname, path=one.path, service=one.service) for one in rules)
    spec = TunnelSpec(tunnel=tunnel, ingress=ingress, file=file, is_token=bool(asked.token))
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
        if model.is_status(rule.service):
            continue
        # Also what is no origin at all: a stored row is not trusted to hold what `checked` let pass.
        named = model.origin_of(rule.service)
        if named is None or (origin := known.get(named)) is None:
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
