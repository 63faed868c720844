"""What a new fleet begins with: every file of its directory, and what of it goes to which host. Pure.

    fleet.json, ca.pem     public; with `secret` all that invitations need
    secret/                stays with the operator: identities of the message system, the key of the TLS authority
    servers/NAME/          to the host of that server
    accounts/              in their place where servers are somebody else's: what their accounts have to have
    controllers/NAME/      to the host of that controller

`fleet_directory` reads them, and keeps beside them what the operator signs.
"""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.fleet import certificates, deployment, subjects
from latticed.fleet.signers import Identities, Signers
from latticed.model.errors import Problem
from latticed.trust import key_files

if TYPE_CHECKING:
    from collections.abc import Sequence

PORT: Final = 4222
_MOST_SERVERS: Final = 8
CONTROLLER_FILES: Final = "/etc/latticed-controller"
"""Where a controller's files are copied to, on its host."""
_ROUTES: Final = 2_000
"""Servers of a cluster reach each other at their port and this."""
_MOST_PORT: Final = 65_535 - _ROUTES
_SERVER: Final = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where a server is reached by agents and controllers: `host` is a name or an address."""

    host: str
    port: int

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def route(self) -> str:
        return ServerAddress(host=self.host, port=self.port + _ROUTES).text

    @property
    def listen(self) -> str:
        """On loopback where that is its address, on all addresses of its host otherwise."""
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = self.host == "localhost"
        return self.text if loopback else f"0.0.0.0:{self.port}"

    @staticmethod
    def parse(text: str) -> ServerAddress:
        """`HOST`, `HOST:PORT`, `[ADDRESS]` or `[ADDRESS]:PORT`; Problem bad_request."""
        found = _SERVER.fullmatch(text.lower())
        port = int(found["port"] or PORT) if found else 0
        if found is None or not 0 < port <= _MOST_PORT:
            raise Problem("bad_request", f"expected a server as HOST or HOST:PORT, found {text[:80]!r}")
        return ServerAddress(host=found["host"] or found["six"], port=port)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFleet:
    """What is asked for. `operators` are public keys. `files_at` and `data_at`: directories on the servers' hosts,
    where their files are to lie and where they keep their streams.
    """

    fleet: str
    servers: tuple[ServerAddress, ...]
    operators: tuple[str, ...]
    controllers: tuple[str, ...]
    sizes: deployment.Sizes
    files_at: str
    data_at: str
    own: OwnServers | None = None

    @property
    def replicas(self) -> int:
        """On how many servers each stream is."""
        return 3 if len(self.servers) >= 3 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnServers:
    """Servers that somebody else configures: PEM of their certificates' authority, the public keys of the accounts."""

    authority: bytes
    control: str
    nodes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file beneath the fleet's directory; `secret`: for nobody else's eyes (mode 0600)."""

    path: str
    data: bytes
    secret: bool = False


def files(wanted: NewFleet, *, now_s: int) -> tuple[NewFile, ...]:
    """Every file, with keys of its own; Problem bad_request."""
    subjects.node_name(wanted.fleet)
    names = [subjects.node_name(one) for one in wanted.controllers]
    if not names or len(set(names)) != len(names):
        raise Problem("bad_request", f"expected names of controllers, each once, found {', '.join(names) or 'none'}")
    if wanted.own is not None:
        return _with_own_servers(wanted, wanted.own, names, now_s=now_s)
    if len(wanted.servers) not in {1, 3} or len(set(wanted.servers)) != len(wanted.servers):
        raise Problem("bad_request", f"expected one server or three, found {len(wanted.servers)}")
    identities = Identities.generate()
    authority = certificates.authority(wanted.fleet, now_s=now_s)
    made = [
        NewFile(path="fleet.json", data=_facts(wanted)),
        NewFile(path="ca.pem", data=authority.certificate),
        NewFile(path="secret/identities.json", data=identities.text() + b"\n", secret=True),
        NewFile(path="secret/authority.key", data=authority.private_key, secret=True),
        NewFile(
            path="secret/system.creds",
            data=deployment.system_credentials(identities, now_s=now_s).text(),
            secret=True,
        ),
    ]
    made += _servers(wanted, identities, authority, now_s=now_s)
    for name in names:
        made += _controller(wanted, name, identities.signers, authority.certificate, now_s=now_s)
        revoking = deployment.revoking_credentials(identities, name, now_s=now_s)
        made.append(NewFile(path=f"controllers/{name}/revoking.creds", data=revoking.text(), secret=True))
    return tuple(made)


def _facts(wanted: NewFleet) -> bytes:
    public = {
        "fleet": wanted.fleet,
        "addresses": [f"tls://{one.text}" for one in wanted.servers],
        "operators": list(wanted.operators),
        "replicas": wanted.replicas,
        "nodes": wanted.sizes.nodes,
        "bundles_bytes": wanted.sizes.bundles_bytes,
    }
    return json.dumps(public, indent=1).encode() + b"\n"


def _with_own_servers(wanted: NewFleet, own: OwnServers, names: list[str], *, now_s: int) -> tuple[NewFile, ...]:
    """What there is to a fleet over servers that are there already. Who runs them puts `accounts` into theirs."""
    if len(wanted.servers) > _MOST_SERVERS or len(set(wanted.servers)) != len(wanted.servers):
        raise Problem("bad_request", f"expected 1 to {_MOST_SERVERS} servers, each once, found {len(wanted.servers)}")
    signers = Signers.generate(control=own.control, nodes=own.nodes)
    claims = deployment.account_claims(signers, sizes=wanted.sizes)
    made = [
        NewFile(path="fleet.json", data=_facts(wanted)),
        NewFile(path="ca.pem", data=own.authority),
        NewFile(path="secret/signers.json", data=signers.text() + b"\n", secret=True),
        *(
            NewFile(path=f"accounts/{name}.json", data=json.dumps(found, indent=1).encode() + b"\n")
            for name, found in claims.items()
        ),
    ]
    for name in names:
        made += _controller(wanted, name, signers, own.authority, now_s=now_s)
    return tuple(made)


def server_name(number: int) -> str:
    """Of the server with this number, from 0."""
    return f"nats-{number + 1}"


def _servers(
    wanted: NewFleet,
    identities: Identities,
    authority: certificates.IssuedCertificate,
    *,
    now_s: int,
) -> list[NewFile]:
    cluster = [
        deployment.ConfiguredServer(
            name=server_name(number),
            listen=one.listen,
            # Of its own for each, for several on one host.
            directory=f"{wanted.data_at}/{server_name(number)}",
            certificate=f"{wanted.files_at}/{server_name(number)}/server.pem",
            private_key=f"{wanted.files_at}/{server_name(number)}/server.key",
            ca=f"{wanted.files_at}/{server_name(number)}/ca.pem",
            route=one.route if len(wanted.servers) == 3 else "",
        )
        for number, one in enumerate(wanted.servers)
    ]
    made: list[NewFile] = []
    for one, address in zip(cluster, wanted.servers, strict=True):
        issued = certificates.server(authority, [address.host], now_s=now_s)
        text = deployment.configuration(one, cluster, identities, sizes=wanted.sizes, now_s=now_s)
        below = f"servers/{one.name}"
        made += [
            NewFile(path=f"{below}/nats-server.conf", data=text.encode()),
            NewFile(path=f"{below}/nats-server.env", data=deployment.server_environment(wanted.sizes).encode()),
            NewFile(path=f"{below}/server.pem", data=issued.certificate),
            NewFile(path=f"{below}/server.key", data=issued.private_key, secret=True),
            NewFile(path=f"{below}/ca.pem", data=authority.certificate),
        ]
    return made


def _controller(
    wanted: NewFleet,
    name: str,
    signers: Signers,
    authority: bytes,
    *,
    now_s: int,
) -> list[NewFile]:
    """What one controller is given. Its key is made here: the host that it is for gets it with the rest."""
    key = key_files.generate()
    request = {
        "kind": "controller",
        "fleet": wanted.fleet,
        "controller": name,
        "controller_key": key_files.public_text(key),
    }
    credentials = deployment.controller_credentials(signers, name, now_s=now_s)
    below = f"controllers/{name}"
    return [
        NewFile(path=f"{below}/key", data=key_files.private_text(key), secret=True),
        NewFile(path=f"{below}/request.json", data=json.dumps(request, indent=1).encode() + b"\n"),
        NewFile(path=f"{below}/nats.creds", data=credentials.text(), secret=True),
        NewFile(path=f"{below}/node-signer", data=signers.node_signer.seed.encode() + b"\n", secret=True),
        NewFile(path=f"{below}/ca.pem", data=authority),
        NewFile(
            path=f"{below}/controller.toml",
            data=controller_settings(wanted, name, account=signers.nodes).encode(),
        ),
    ]


def controller_settings(wanted: NewFleet, name: str, *, account: str) -> str:
    """/etc/latticed/controller.toml for the controller of this name; `account`: the public key of the account NODES."""

    def texts(values: Sequence[str]) -> str:
        return json.dumps(list(values))

    lines = [
        f"fleet = {json.dumps(wanted.fleet)}",
        f"controller = {json.dumps(name)}",
        f"operators = {texts(wanted.operators)}",
        "",
        "[engine]",
        f"servers = {texts([f'tls://{one.text}' for one in wanted.servers])}",
        f"ca = {json.dumps(f'{CONTROLLER_FILES}/ca.pem')}",
        f"credentials = {json.dumps(f'{CONTROLLER_FILES}/nats.creds')}",
        f"revoking = {json.dumps(f'{CONTROLLER_FILES}/revoking.creds')}",
        f"replicas = {wanted.replicas}",
        f"nodes = {wanted.sizes.nodes}",
        f"bundles_bytes = {wanted.sizes.bundles_bytes}",
        "",
        "[enrolment]",
        f"node_signer = {json.dumps(f'{CONTROLLER_FILES}/node-signer')}",
        f"account = {json.dumps(account)}",
        "",
    ]
    return "\n".join(lines)
