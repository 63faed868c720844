"""What an operator wants of proxies: the typed model, as `decode.read` makes it of JSON.

    {"core": "sing-box", "host": "vpn.example.org", "secret_name": "PROXY_USERS",
     "api": {"port": 9180, "secret": "${secret:PROXY_API}"},
     "inbounds": [
        {"tag": "front", "protocol": "vless", "port": 443, "flow": "xtls-rprx-vision",
         "reality": {"server_name": "www.example.com", "handshake": "www.example.com:443",
                     "private_key": "${secret:PROXY_REALITY}", "public_key": "…", "short_ids": ["0123abcd"]}},
        {"tag": "fast", "protocol": "hysteria2", "port": 443,
         "tls": {"server_name": "vpn.example.org", "certificate_file": "/etc/…", "key_file": "/etc/…"}}],
     "users": [{"id": "anna", "expires_at": 1800000000, "quota_bytes": 107374182400},
               {"id": "ben", "enabled": false, "inbounds": ["fast"], "uuid": "${secret:BEN_UUID}"}]}

A user's credentials are derived from the secret `secret_name`, one for each form that his inbounds need: for `anna`
the UUID `PROXY_USERS#anna.uuid`, the password `PROXY_USERS#anna.password`, the key `PROXY_USERS#anna.key`. Another
`label` gives him others. So 2,000 users fit into one intent and one secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.model.addresses import Address

MAX_INBOUNDS: Final = 64
MAX_USERS: Final = 2_000
MAX_OUTBOUNDS: Final = 32
MAX_SHORT_IDS: Final = 16
MAX_EXPIRY_S: Final = 253_402_300_799
"""The last second of the year 9999, as seconds since 1970."""
MAX_QUOTA_BYTES: Final = (1 << 53) - 1
"""What JSON of every reader holds exactly."""
MAX_MBPS: Final = 100_000
DIRECT: Final = "direct"
"""The outbound that is always there."""
BLOCK: Final = "block"


class Core(StrEnum):
    SING_BOX = "sing-box"
    XRAY = "xray"


class Protocol(StrEnum):
    VLESS = "vless"
    VMESS = "vmess"
    TROJAN = "trojan"
    SHADOWSOCKS = "shadowsocks"
    HYSTERIA2 = "hysteria2"


class CredentialForm(StrEnum):
    """Of a credential; the values are forms of secrets (`plans.protocol.SECRET_FORMS`)."""

    UUID = "uuid"
    PASSWORD = "password"  # noqa: S105 - a form, no password
    KEY = "key"


class Flow(StrEnum):
    NONE = ""
    VISION = "xtls-rprx-vision"


class Method(StrEnum):
    """Of Shadowsocks 2022 (SIP022), those with which one port serves many users (SIP023)."""

    AES_128 = "2022-blake3-aes-128-gcm"
    AES_256 = "2022-blake3-aes-256-gcm"


FORMS: Final = {
    Protocol.VLESS: CredentialForm.UUID,
    Protocol.VMESS: CredentialForm.UUID,
    Protocol.TROJAN: CredentialForm.PASSWORD,
    Protocol.SHADOWSOCKS: CredentialForm.KEY,
    Protocol.HYSTERIA2: CredentialForm.PASSWORD,
}
"""The credential of a user that each protocol asks for."""
TRANSPORTS: Final = {
    Protocol.VLESS: ("tcp",),
    Protocol.VMESS: ("tcp",),
    Protocol.TROJAN: ("tcp",),
    Protocol.SHADOWSOCKS: ("tcp", "udp"),
    Protocol.HYSTERIA2: ("udp",),
}
"""Where each protocol listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A host, name or address, and a port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTls:
    """Files are the operator's, read by the core. `alpn` may be empty."""

    server_name: str
    certificate_file: str
    key_file: str
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reality:
    """`private_key`: a reference. `public_key`, which may be empty: of it, in base64url; links need it."""

    server_name: str
    handshake: HostPort
    private_key: str
    short_ids: tuple[str, ...]
    public_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocket:
    path: str
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """One listener. `front`: what devices dial instead, with TLS, where another program ends that (nginx).

    `password`, `obfs`: references; of Shadowsocks the key of the server, of Hysteria2 the password of salamander.
    """

    tag: str
    protocol: Protocol
    listen: Address
    port: int
    outbound: str = DIRECT
    tls: InboundTls | None = None
    reality: Reality | None = None
    ws: WebSocket | None = None
    front: HostPort | None = None
    flow: Flow = Flow.NONE
    method: Method = Method.AES_256
    password: str = ""
    obfs: str = ""
    up_mbps: int | None = None
    down_mbps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """`source`: the address of this host that connections leave from; None: what the kernel chooses."""

    tag: str
    source: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """`inbounds` None: all. `label`: of the derived credentials, the id unless said otherwise.

    `uuid`, `password`, `key`: references to credentials of his own instead, as of a user who is taken over.
    """

    id: str
    name: str = ""
    label: str = ""
    enabled: bool = True
    expires_at: int | None = None
    quota_bytes: int | None = None
    inbounds: tuple[str, ...] | None = None
    uuid: str = ""
    password: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreApi:
    """Where the helper asks the core who is connected, and closes connections. `secret`: a reference."""

    listen: Address
    port: int
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyIntent:
    """`host`: what devices dial. `reach_private`: whether users reach private networks and loopback."""

    core: Core = Core.SING_BOX
    host: str = ""
    secret_name: str = ""
    api: CoreApi | None = None
    reach_private: bool = False
    inbounds: tuple[Inbound, ...] = ()
    outbounds: tuple[Outbound, ...] = ()
    users: tuple[User, ...] = ()

    def users_of(self, inbound: Inbound) -> tuple[User, ...]:
        """Who is to be let in there: enabled users, sorted by id."""
        found = [one for one in self.users if one.enabled and (one.inbounds is None or inbound.tag in one.inbounds)]
        return tuple(sorted(found, key=lambda one: one.id))


def reference(intent: ProxyIntent, user: User, form: CredentialForm) -> str:
    """The reference of a user's credential, as `PROXY_USERS#anna.uuid`; empty where nothing says which."""
    own = str(getattr(user, form))
    if own or not intent.secret_name:
        return own
    return f"{intent.secret_name}#{user.label or user.id}.{form}"


def forms_of(intent: ProxyIntent, user: User) -> tuple[CredentialForm, ...]:
    """The forms of the credentials that a user's inbounds need."""
    tags = user.inbounds
    return tuple(sorted({FORMS[one.protocol] for one in intent.inbounds if tags is None or one.tag in tags}))


def references(intent: ProxyIntent) -> dict[str, str]:
    """Every reference of an intent with its form; those of users that are not enabled too."""
    found: dict[str, str] = {}
    if intent.api is not None:
        found[intent.api.secret] = CredentialForm.PASSWORD
    for inbound in intent.inbounds:
        if inbound.reality is not None:
            found[inbound.reality.private_key] = CredentialForm.KEY
        if inbound.password:
            found[inbound.password] = CredentialForm.KEY
        if inbound.obfs:
            found[inbound.obfs] = CredentialForm.PASSWORD
    for user in intent.users:
        for form in forms_of(intent, user):
            found[reference(intent, user, form)] = form
    found.pop("", None)
    return {name: str(found[name]) for name in sorted(found)}
