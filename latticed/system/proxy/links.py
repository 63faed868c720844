"""Share links: what a device is given to reach one inbound as one user, written and read as other tools write them.

    vless://UUID@vpn.example.org:443?encryption=none&security=reality&sni=www.example.com&…#front
    trojan://PASSWORD@vpn.example.org:443?security=tls&sni=vpn.example.org#tr
    ss://2022-blake3-aes-256-gcm:KEY%3AKEY@vpn.example.org:8388#ss                   SIP002, and SIP022 for the keys
    vmess://eyJhZGQiOiJ2cG4uZXhhbXBsZS5vcmciLCJ…                                     of v2rayN: JSON in base64
    hysteria2://PASSWORD@vpn.example.org:443/?sni=vpn.example.org#fast

What `read` takes, `write` gives again in the form above, and nothing of it is lost: what has no place in `ShareLink` is
refused by its name. Links come from strangers: nothing in them is shown, and none has a control character.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote

from latticed.model.errors import Problem
from latticed.system.proxy.intent import Flow, Method, Protocol
from latticed.system.reading import is_host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_CHARACTERS: Final = 4_096
FINGERPRINT: Final = "chrome"
"""Whose TLS a client of REALITY imitates; it has to imitate one."""
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_AUTHORITY: Final = re.compile(
    r"(?P<who>[^@/?#]*)@(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<host>[^:@/?#\[\]]+))(?::(?P<port>[^/?#@]*))?/?"
)
_PUBLIC_KEY: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_SHORT_ID: Final = re.compile(r"(?:[0-9a-fA-F]{2}){0,8}")
_WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_ALPN: Final = re.compile(r"[A-Za-z0-9./-]{1,16}")
_KEY_BYTES: Final = {Method.AES_128: 16, Method.AES_256: 32}
_CIPHERS: Final = frozenset({"auto", "none", "zero", "aes-128-gcm", "chacha20-poly1305"})
_EARLY: Final = re.compile(r"(?P<path>[^?]*)\?ed=(?P<early>[0-9]{1,5})")


class NoLink(Problem):
    """A link that is refused, with what of it: never with a part of its own, which may be somebody's password."""

    def __init__(self, what: str) -> None:
        super().__init__("bad_link", what)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareLink:
    """`credential`: UUID or password; of Shadowsocks the keys of server and user, `KEY:KEY`.

    `security`: tls, reality or nothing. `insecure`: the client takes any certificate. `early_data`: bytes that go with
    the request of a WebSocket. `cipher`: of VMess.
    """

    protocol: Protocol
    host: str
    port: int
    credential: str = field(repr=False)
    name: str = ""
    security: str = ""
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    fingerprint: str = ""
    insecure: bool = False
    public_key: str = ""
    short_id: str = ""
    spider: str = ""
    flow: Flow = Flow.NONE
    websocket: bool = False
    path: str = ""
    ws_host: str = ""
    early_data: int = 0
    method: Method | None = None
    cipher: str = ""
    obfs: str = field(default="", repr=False)


# Writing


def write(link: ShareLink) -> str:
    """The link in the form that most programs read."""
    match link.protocol:
        case Protocol.SHADOWSOCKS:
            who = f"{link.method}:{_quoted(link.credential)}"
            return _url("ss", who, link, {})
        case Protocol.VMESS:
            return _vmess(link)
        case Protocol.HYSTERIA2:
            obfs = {"obfs": "salamander", "obfs-password": link.obfs} if link.obfs else {}
            found = {"sni": link.server_name, "alpn": ",".join(link.alpn), **obfs}
            return _url("hysteria2", _quoted(link.credential), link, {**found, "insecure": _one(link.insecure)}, "/")
        case _:
            encryption = {"encryption": "none"} if link.protocol is Protocol.VLESS else {}
            return _url(str(link.protocol), _quoted(link.credential), link, {**encryption, **_stream(link)})


def _stream(link: ShareLink) -> dict[str, str]:
    return {
        "flow": str(link.flow),
        "security": link.security or "none",
        "sni": link.server_name,
        "alpn": ",".join(link.alpn),
        "fp": link.fingerprint,
        "allowInsecure": _one(link.insecure),
        "pbk": link.public_key,
        "sid": link.short_id,
        "spx": link.spider,
        "type": "ws" if link.websocket else "tcp",
        "host": link.ws_host,
        "path": _path(link),
    }


def _url(scheme: str, who: str, link: ShareLink, parameters: Mapping[str, str], slash: str = "") -> str:
    host = f"[{link.host}]" if ":" in link.host else link.host
    query = "&".join(f"{name}={_quoted(value)}" for name, value in parameters.items() if value)
    named = f"#{_quoted(link.name)}" if link.name else ""
    return f"{scheme}://{who}@{host}:{link.port}{slash}{f'?{query}' if query else ''}{named}"


def _vmess(link: ShareLink) -> str:
    found = {
        "v": "2",
        "ps": link.name,
        "add": link.host,
        "port": str(link.port),
        "id": link.credential,
        "aid": "0",
        "scy": link.cipher or "auto",
        "net": "ws" if link.websocket else "tcp",
        "type": "none",
        "host": link.ws_host,
        "path": _path(link),
        "tls": link.security,
        "sni": link.server_name,
        "alpn": ",".join(link.alpn),
        "fp": link.fingerprint,
        **({"allowInsecure": "1"} if link.insecure else {}),
    }
    written = json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    return f"vmess://{base64.b64encode(written).decode('ascii')}"


def _path(link: ShareLink) -> str:
    return f"{link.path}?ed={link.early_data}" if link.early_data else link.path


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _one(given: bool) -> str:  # noqa: FBT001 - the value is the question
    return "1" if given else ""


# Reading


def read(text: str) -> ShareLink:
    """The link; NoLink for what is none, or says more than a `ShareLink` holds."""
    if len(text) > MAX_CHARACTERS:
        raise NoLink(f"expected a link of at most {MAX_CHARACTERS} characters")
    if not text.isprintable() or " " in text.partition("#")[0]:
        raise NoLink("expected a link without spaces, newlines and control characters")
    scheme, mark, rest = text.partition("://")
    reader = _READERS.get(scheme.lower())
    if not mark or reader is None:
        raise NoLink(f"expected a link of {', '.join(sorted(_READERS))}")
    body, _, fragment = rest.partition("#")
    return reader(body, _plain(fragment))


def _vless_link(body: str, name: str) -> ShareLink:
    link, parameters = _parsed(Protocol.VLESS, body, name)
    parameters.expect("encryption", "", "none")
    return _streamed(replace(link, credential=_uuid(link.credential)), parameters, default="")


def _trojan_link(body: str, name: str) -> ShareLink:
    link, parameters = _parsed(Protocol.TROJAN, body, name)
    found = _streamed(link, parameters, default="tls")
    if not found.security:
        raise NoLink("expected tls beneath Trojan")
    return found


def _hysteria_link(body: str, name: str) -> ShareLink:
    link, parameters = _parsed(Protocol.HYSTERIA2, body, name, port=443)
    obfs = parameters.take("obfs")
    if obfs not in {"", "none", "salamander"}:
        raise NoLink("expected no obfs, or salamander")
    password = parameters.take("obfs-password")
    if (obfs == "salamander") != bool(password):
        raise NoLink("expected obfs and obfs-password together")
    found = replace(
        link,
        security="tls",
        server_name=_host_or_none(parameters.take("sni") or parameters.take("peer")),
        insecure=parameters.flag("insecure", "allowInsecure"),
        alpn=_alpn(parameters.take("alpn")),
        obfs=password,
    )
    parameters.end()
    return found


def _shadowsocks_link(body: str, name: str) -> ShareLink:
    """SIP002, with userinfo in base64url or, as for the methods of 2022, percent-encoded; and all in base64."""
    whole, mark, query = body.partition("?")
    if "@" not in whole:
        # The form of before SIP002. Its password holds no `@` here: keys are base64.
        body = _decoded(whole.rstrip("/")) + mark + query
    link, parameters = _parsed(Protocol.SHADOWSOCKS, body, name, raw=True)
    who = link.credential
    if ":" not in who and "%3A" not in who.upper():
        who = _decoded(unquote(who))
    elif "%" in who:
        who = _plain(who)
    method, _, password = who.partition(":")
    try:
        known = Method(method)
    except ValueError:
        raise NoLink(f"expected the method {' or '.join(Method)}") from None
    for key in password.split(":"):
        if not _is_key(key, _KEY_BYTES[known]):
            raise NoLink(f"expected keys of {_KEY_BYTES[known]} bytes in base64")
    if password.count(":") > 1:
        raise NoLink("expected the key of a server, and of a user at most")
    parameters.expect("type", "", "tcp")
    parameters.end()
    return replace(link, credential=password, method=known)


def _vmess_link(body: str, name: str) -> ShareLink:
    """Of v2rayN (JSON in base64), of Shadowrocket (authority in base64), and as a URL with parameters."""
    whole, mark, query = body.partition("?")
    if "@" in whole:
        link, parameters = _parsed(Protocol.VMESS, body, name)
        cipher = parameters.take("encryption") or "auto"
        return _streamed(_vmess_of(link, cipher), parameters, default="")
    inner = _decoded(whole)
    if inner.startswith("{"):
        if mark:
            raise NoLink("expected no parameters behind JSON")
        return _vmess_json(inner, name)
    if "@" not in inner or "=" in inner:
        raise NoLink("expected VMess as JSON or UUID@host:port in base64, not the form of Quantumult")
    cipher, _, rest = inner.partition(":")
    link, parameters = _parsed(Protocol.VMESS, f"{rest}{mark}{query}", name)
    parameters.expect("alterId", "", "0")
    obfs = parameters.take("obfs")
    if obfs not in {"", "none", "websocket"}:
        raise NoLink("expected no obfs, or websocket")
    path, early = _early(parameters.take("path"))
    tls = parameters.flag("tls")
    found = replace(
        _vmess_of(link, cipher),
        name=name or _shown(parameters.take("remarks") or parameters.take("remark")),
        security="tls" if tls else "",
        server_name=_host_or_none(parameters.take("peer")),
        insecure=parameters.flag("allowInsecure"),
        websocket=obfs == "websocket",
        ws_host=_host_or_none(parameters.take("obfsParam")),
        path=path,
        early_data=early,
    )
    parameters.end()
    return _consistent(found)


def _vmess_of(link: ShareLink, cipher: str) -> ShareLink:
    if cipher not in _CIPHERS:
        raise NoLink(f"expected a cipher of {', '.join(sorted(_CIPHERS))}")
    return replace(link, credential=_uuid(link.credential), cipher=cipher)


def _vmess_json(text: str, name: str) -> ShareLink:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise NoLink("expected JSON in base64") from None
    if not isinstance(found, dict) or not all(isinstance(one, str | int | float | None) for one in found.values()):
        raise NoLink("expected a JSON object of texts and numbers")
    # Some programs write numbers and null for texts.
    parameters = _Parameters({key: "" if value is None else _shown(str(value)) for key, value in found.items()})
    parameters.expect("v", "", "1", "2")
    parameters.expect("aid", "", "0")
    parameters.expect("type", "", "none", "auto")
    net = parameters.take("net")
    if net not in {"", "tcp", "raw", "ws"}:
        raise NoLink("expected the transport tcp or ws")
    link = ShareLink(
        protocol=Protocol.VMESS,
        host=_host(parameters.take("add")),
        port=_port(parameters.take("port")),
        credential=parameters.take("id"),
        name=parameters.take("ps") or name,
    )
    path, early = _early(parameters.take("path"))
    security = parameters.take("tls")
    if security not in {"", "none", "tls"}:
        raise NoLink("expected tls, or none")
    made = replace(
        _vmess_of(link, parameters.take("scy") or parameters.take("security") or "auto"),
        security="" if security == "none" else security,
        server_name=_host_or_none(parameters.take("sni")),
        alpn=_alpn(parameters.take("alpn")),
        fingerprint=_word(parameters.take("fp")),
        insecure=parameters.flag("allowInsecure", "skip-cert-verify"),
        websocket=net == "ws",
        ws_host=_host_or_none(parameters.take("host")),
        path=path,
        early_data=early,
    )
    parameters.end()
    return _consistent(made)


def _streamed(link: ShareLink, parameters: _Parameters, *, default: str) -> ShareLink:
    """The parameters that VLESS, VMess and Trojan share."""
    transport = parameters.take("type") or "tcp"
    if transport not in {"tcp", "raw", "ws"}:
        raise NoLink("expected the transport tcp or ws")
    parameters.expect("headerType", "", "none")
    parameters.expect("packetEncoding", "", "xudp")
    security = parameters.take("security") or default
    if security not in {"", "none", "tls", "reality"}:
        raise NoLink("expected the security tls, reality or none")
    flow = parameters.take("flow")
    if flow not in {str(one) for one in Flow}:
        raise NoLink(f"expected the flow {Flow.VISION}, or none")
    path, early = _early(parameters.take("path"))
    public, short = parameters.take("pbk"), parameters.take("sid")
    if (security == "reality") != bool(public) or (public and not _PUBLIC_KEY.fullmatch(public)):
        raise NoLink("expected pbk, a key of 32 bytes in base64url, with the security reality alone")
    if not _SHORT_ID.fullmatch(short) or (short and not public):
        raise NoLink("expected sid, an even number of hex digits and at most 16, with the security reality alone")
    found = replace(
        link,
        security="" if security == "none" else security,
        server_name=_host_or_none(parameters.take("sni") or parameters.take("peer")),
        alpn=_alpn(parameters.take("alpn")),
        fingerprint=_word(parameters.take("fp")),
        insecure=parameters.flag("allowInsecure", "insecure"),
        public_key=public,
        short_id=short,
        spider=parameters.take("spx"),
        flow=Flow(flow),
        websocket=transport == "ws",
        ws_host=_host_or_none(parameters.take("host")),
        path=path,
        early_data=early,
    )
    parameters.end()
    return _consistent(found)


def _consistent(link: ShareLink) -> ShareLink:
    """What has no meaning in a link is left out when it is a default, and refused otherwise."""
    if not link.websocket:
        if link.path not in {"", "/"} or link.early_data:
            raise NoLink("expected no path without a WebSocket")
        link = replace(link, path="", ws_host="")
    elif not link.path:
        link = replace(link, path="/")
    if link.flow and (link.protocol is not Protocol.VLESS or not link.security or link.websocket):
        raise NoLink("expected a flow with VLESS over tls or reality alone")
    if link.security == "reality" and link.protocol is not Protocol.VLESS:
        raise NoLink("expected reality beneath VLESS alone")
    return link


class _Parameters:
    """Parameters of a link; whatever is not taken in the end is refused by its name."""

    def __init__(self, given: dict[str, str]) -> None:
        self._given = given

    def take(self, name: str) -> str:
        return self._given.pop(name, "")

    def expect(self, name: str, *values: str) -> None:
        if self.take(name) not in values:
            raise NoLink(f"expected the parameter {name} to be {' or '.join(one for one in values if one)}, or missing")

    def flag(self, *names: str) -> bool:
        found = [self.take(name).lower() for name in names]
        if not set(found) <= {"", "0", "1", "false", "true"}:
            raise NoLink(f"expected the parameter {names[0]} to be 0 or 1")
        return bool({"1", "true"} & set(found))

    def end(self) -> None:
        rest = sorted(name for name, value in self._given.items() if value)
        if rest:
            name = rest[0] if _WORD.fullmatch(rest[0]) else "with a strange name"
            raise NoLink(f"expected no parameter {name}: nothing here knows what to do with it")


def _parsed(
    protocol: Protocol, body: str, name: str, *, port: int | None = None, raw: bool = False
) -> tuple[ShareLink, _Parameters]:
    """`who@host:port/?name=value`. `port`: where none is said. `raw`: leave `who` as it is written."""
    authority, _, query = body.partition("?")
    found = _AUTHORITY.fullmatch(authority)
    if found is None or not found["who"]:
        raise NoLink("expected who@host:port")
    listed = [(key, _shown(value)) for key, value in _pairs(query)]
    parameters = dict(listed)
    if len(parameters) < len(listed):
        raise NoLink("expected each parameter once")
    given = found["port"] or ""
    link = ShareLink(
        protocol=protocol,
        host=_six(found["six"]) if found["six"] else _host(found["host"]),
        port=port if port is not None and not given else _port(given),
        credential=found["who"] if raw else _plain(found["who"]),
        name=name,
    )
    return link, _Parameters(parameters)


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        # A plus is a plus: only forms write spaces so, and base64 has many.
        return parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, max_num_fields=64, errors="strict")
    except ValueError:
        raise NoLink("expected parameters as name=value, in UTF-8") from None


def _decoded(text: str) -> str:
    """Base64 of either alphabet, with or without padding."""
    try:
        usual = text.replace("-", "+").replace("_", "/").rstrip("=")
        found = base64.b64decode(usual + "=" * (-len(usual) % 4), validate=True).decode("utf-8")
    except ValueError:  # of base64 and UTF-8, which have their own kinds of it
        raise NoLink("expected base64") from None
    # JSON may be written over several lines.
    return "".join(found.splitlines()) if found.lstrip().startswith("{") else _shown(found)


def _plain(text: str) -> str:
    try:
        return _shown(unquote(text, errors="strict"))
    except UnicodeError:
        raise NoLink("expected percent-encoded UTF-8") from None


def _shown(text: str) -> str:
    if not text.isprintable():
        raise NoLink("expected no newlines and control characters")
    return text


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise NoLink("expected a UUID")
    return text.lower()


def _host(text: str) -> str:
    if ":" in text:
        return _six(text)
    if not is_host(text):
        raise NoLink("expected a host name in ASCII, or an address")
    return text.lower()


def _host_or_none(text: str) -> str:
    return _host(text) if text else ""


def _six(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text.strip("[]")))
    except ValueError:
        raise NoLink("expected an IPv6 address in brackets") from None


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65_535:
        raise NoLink("expected one port from 1 to 65535")
    return int(text)


def _early(path: str) -> tuple[str, int]:
    """Path and early data of `/ws?ed=2560`."""
    found = _EARLY.fullmatch(path)
    if found is not None:
        path, early = found["path"], int(found["early"])
    else:
        early = 0
    if "?" in path or "#" in path or (path and not path.startswith("/")):
        raise NoLink("expected a path without parameters, but for ed")
    return path, early


def _alpn(text: str) -> tuple[str, ...]:
    found = tuple(text.split(",")) if text else ()
    if not all(_ALPN.fullmatch(one) for one in found):
        raise NoLink("expected alpn as h2,http/1.1")
    return found


def _word(text: str) -> str:
    if text and not _WORD.fullmatch(text):
        raise NoLink("expected fp to be the name of a browser")
    return text


def _is_key(text: str, size: int) -> bool:
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return len(found) == size and base64.b64encode(found).decode("ascii") == text


_READERS: Final[dict[str, Callable[[str, str], ShareLink]]] = {
    "vless": _vless_link,
    "vmess": _vmess_link,
    "trojan": _trojan_link,
    "ss": _shadowsocks_link,
    "hysteria2": _hysteria_link,
    "hy2": _hysteria_link,
}
