"""An intent from plain JSON values, strictly (`system.reading`)."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from latticed.system.findings import IntentRefused
from latticed.system.proxy import intent as model
from latticed.system.reading import MISSING, Reader, Told, is_host

if TYPE_CHECKING:
    from latticed.model.addresses import Address

PLUGIN: Final = "latticed.proxy"
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_TAG_EXPECTED: Final = "a tag: at most 128 of A-Z a-z 0-9 _ . : -, the first a letter or digit"
_SECRET_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_LABEL: Final = re.compile(r"[A-Za-z0-9_.@-]{1,48}")
"""A label of a reference has at most 64 characters, `.password` being nine of them."""
_SHORT_ID: Final = re.compile(r"(?:[0-9a-f]{2}){0,8}")
_FILE: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._@+-]{1,64}){1,16}")
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]{0,127}")
_PLACE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9.-]{1,253})):([0-9]{1,5})")
_PUBLIC_KEY: Final = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
"""32 bytes in base64url without padding, in the one way of the four that a sloppy decoder takes."""
_ALPN: Final = re.compile(r"[a-z0-9][a-z0-9./-]{0,15}")
_MAX_ALPN: Final = 4
_INTENT_KEYS: Final = "core host secret_name api reach_private inbounds outbounds users"
_INBOUND_KEYS: Final = (
    "tag protocol listen port outbound tls reality ws front flow method password obfs up_mbps down_mbps"
)
_USER_KEYS: Final = "id name label enabled expires_at quota_bytes inbounds uuid password key"
_ONLY: Final = {
    "tls": (model.Protocol.VLESS, model.Protocol.VMESS, model.Protocol.TROJAN, model.Protocol.HYSTERIA2),
    "reality": (model.Protocol.VLESS,),
    "ws": (model.Protocol.VLESS, model.Protocol.VMESS, model.Protocol.TROJAN),
    "front": (model.Protocol.VLESS, model.Protocol.VMESS, model.Protocol.TROJAN),
    "flow": (model.Protocol.VLESS,),
    "method": (model.Protocol.SHADOWSOCKS,),
    "password": (model.Protocol.SHADOWSOCKS,),
    "obfs": (model.Protocol.HYSTERIA2,),
    "up_mbps": (model.Protocol.HYSTERIA2,),
    "down_mbps": (model.Protocol.HYSTERIA2,),
}
"""Fields that only these protocols have."""


def read(plain: Any) -> model.ProxyIntent:
    """The intent in plain JSON values, or IntentRefused with every fault of its form (at most 100).

    What the form cannot show (a port twice, a tag that nothing has) is for `check`.
    """
    reader = _ProxyReader()
    intent = reader.intent(plain)
    if reader.findings:
        raise IntentRefused(reader.findings)
    return intent


class _ProxyReader(Reader):
    def intent(self, plain: Any) -> model.ProxyIntent:
        fields = self.fields(plain, "", _INTENT_KEYS)
        secret_name = fields.get("secret_name", "")
        if secret_name != "":
            expected = "the name of a secret, as PROXY_USERS"
            secret_name = self.text(secret_name, "secret_name", "bad_secret", _SECRET_NAME, expected)
        return model.ProxyIntent(
            core=self.choice(fields, "core", "", model.Core.SING_BOX),
            host=self.host(fields["host"], "host") if "host" in fields else "",
            secret_name=secret_name,
            api=self.api(fields["api"], "api") if "api" in fields else None,
            reach_private=self.boolean(fields, "reach_private", "", default=False),
            inbounds=self.each(fields, "inbounds", "inbounds", model.MAX_INBOUNDS, self.inbound),
            outbounds=self.each(fields, "outbounds", "outbounds", model.MAX_OUTBOUNDS, self.outbound),
            users=self.each(fields, "users", "users", model.MAX_USERS, self.user),
        )

    def api(self, value: Any, path: str) -> model.CoreApi:
        fields = self.fields(value, path, "listen port secret", "port secret")
        return model.CoreApi(
            listen=self.address(fields.get("listen", "127.0.0.1"), f"{path}.listen"),
            port=self.integer(fields.get("port", 1), f"{path}.port", 1, 65_535),
            secret=self.reference(fields, "secret", path, PLUGIN),
        )

    def inbound(self, value: Any, path: str) -> model.Inbound:
        fields = self.fields(value, path, _INBOUND_KEYS, "tag protocol port")
        protocol = self.choice(fields, "protocol", path, model.Protocol.VLESS)
        for name in fields.keys() & _ONLY.keys():
            if protocol not in _ONLY[name]:
                expected = f"nothing of that kind for {protocol}, only for {', '.join(_ONLY[name])}"
                self.refuse("not_of_protocol", f"{path}.{name}", expected, Told(name))
        if protocol is model.Protocol.SHADOWSOCKS and "password" not in fields:
            self.refuse("missing_key", f"{path}.password", "the server's key, as ${secret:NAME}", Told("none"))
        return model.Inbound(
            tag=self.tag(fields["tag"], f"{path}.tag") if "tag" in fields else "",
            protocol=protocol,
            listen=self.address(fields.get("listen", "0.0.0.0"), f"{path}.listen"),  # noqa: S104 - what it is for
            port=self.integer(fields.get("port", 1), f"{path}.port", 1, 65_535),
            outbound=self.tag(fields.get("outbound", model.DIRECT), f"{path}.outbound"),
            tls=self.tls(fields["tls"], f"{path}.tls") if "tls" in fields else None,
            reality=self.reality(fields["reality"], f"{path}.reality") if "reality" in fields else None,
            ws=self.websocket(fields["ws"], f"{path}.ws") if "ws" in fields else None,
            front=self.place(fields["front"], f"{path}.front") if "front" in fields else None,
            flow=self.choice(fields, "flow", path, model.Flow.NONE),
            method=self.choice(fields, "method", path, model.Method.AES_256),
            password=self.reference(fields, "password", path, PLUGIN),
            obfs=self.reference(fields, "obfs", path, PLUGIN),
            up_mbps=self.optional(fields, "up_mbps", path, 1, model.MAX_MBPS),
            down_mbps=self.optional(fields, "down_mbps", path, 1, model.MAX_MBPS),
        )

    def tls(self, value: Any, path: str) -> model.InboundTls:
        known = "server_name certificate_file key_file"
        fields = self.fields(value, path, f"{known} alpn", known)
        return model.InboundTls(
            server_name=self.server_name(fields, path),
            certificate_file=self.file(fields, "certificate_file", path),
            key_file=self.file(fields, "key_file", path),
            alpn=self.each(fields, "alpn", f"{path}.alpn", _MAX_ALPN, self.alpn),
        )

    def reality(self, value: Any, path: str) -> model.Reality:
        needed = "server_name handshake private_key short_ids"
        fields = self.fields(value, path, f"{needed} public_key", needed)
        short_ids = self.each(fields, "short_ids", f"{path}.short_ids", model.MAX_SHORT_IDS, self.short_id)
        if not short_ids and "short_ids" in fields:
            self.refuse("missing_key", f"{path}.short_ids", "a short id", Told("none"))
        nowhere = model.HostPort(host="192.0.2.1", port=1)
        public = ""
        if "public_key" in fields:
            expected = "a key of 32 bytes in base64url, as sing-box generate reality-keypair prints it"
            public = self.text(fields["public_key"], f"{path}.public_key", "bad_key", _PUBLIC_KEY, expected)
        return model.Reality(
            server_name=self.server_name(fields, path),
            handshake=self.place(fields["handshake"], f"{path}.handshake") if "handshake" in fields else nowhere,
            private_key=self.reference(fields, "private_key", path, PLUGIN),
            short_ids=short_ids,
            public_key=public,
        )

    def websocket(self, value: Any, path: str) -> model.WebSocket:
        fields = self.fields(value, path, "path host", "path")
        expected = "a path: / and at most 127 of A-Z a-z 0-9 . _ ~ / -"
        return model.WebSocket(
            path=self.text(fields.get("path", "/"), f"{path}.path", "bad_path", _PATH, expected),
            host=self.host(fields["host"], f"{path}.host") if "host" in fields else "",
        )

    def outbound(self, value: Any, path: str) -> model.Outbound:
        fields = self.fields(value, path, "tag source", "tag")
        return model.Outbound(
            tag=self.tag(fields["tag"], f"{path}.tag") if "tag" in fields else "",
            source=self.address(fields["source"], f"{path}.source") if "source" in fields else None,
        )

    def user(self, value: Any, path: str) -> model.User:
        fields = self.fields(value, path, _USER_KEYS, "id")
        label = fields.get("label", "")
        if label != "":
            expected = "a label: at most 48 of A-Z a-z 0-9 _ . @ -"
            label = self.text(label, f"{path}.label", "bad_label", _LABEL, expected)
        tags = None
        if "inbounds" in fields:
            tags = self.each(fields, "inbounds", f"{path}.inbounds", model.MAX_INBOUNDS, self.tag)
        return model.User(
            id=self.name(fields.get("id", MISSING), f"{path}.id"),
            name=self.comment(fields, path, "name"),
            label=label,
            enabled=self.boolean(fields, "enabled", path, default=True),
            expires_at=self.optional(fields, "expires_at", path, 0, model.MAX_EXPIRY_S),
            quota_bytes=self.optional(fields, "quota_bytes", path, 1, model.MAX_QUOTA_BYTES),
            inbounds=tags,
            uuid=self.reference(fields, "uuid", path, PLUGIN),
            password=self.reference(fields, "password", path, PLUGIN),
            key=self.reference(fields, "key", path, PLUGIN),
        )

    # Values

    def tag(self, value: Any, path: str) -> str:
        return self.text(value, path, "bad_tag", _TAG, _TAG_EXPECTED)

    def short_id(self, value: Any, path: str) -> str:
        expected = "an even number of hex digits in lower case, at most 16"
        return self.text(value, path, "bad_short_id", _SHORT_ID, expected)

    def alpn(self, value: Any, path: str) -> str:
        return self.text(value, path, "bad_alpn", _ALPN, "a protocol of TLS, as h2 or http/1.1")

    def file(self, fields: dict[str, Any], name: str, path: str) -> str:
        expected = "an absolute path of A-Z a-z 0-9 . _ @ + -, without . and .. as names"
        return self.text(fields[name], f"{path}.{name}", "bad_file", _FILE, expected) if name in fields else ""

    def server_name(self, fields: dict[str, Any], path: str) -> str:
        return self.host(fields["server_name"], f"{path}.server_name") if "server_name" in fields else ""

    def host(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or not is_host(value):
            self.refuse("bad_host", path, "a host name in ASCII, or an IPv4 address", value)
            return ""
        return value.lower()

    def place(self, value: Any, path: str) -> model.HostPort:
        found = _PLACE.fullmatch(value) if isinstance(value, str) else None
        if found is not None and 1 <= int(found[3]) <= 65_535:
            if found[1] and (six := _six(found[1])):
                return model.HostPort(host=six, port=int(found[3]))
            if found[2] and is_host(found[2]):
                return model.HostPort(host=found[2].lower(), port=int(found[3]))
        self.refuse("bad_place", path, "host and port, as www.example.com:443 or [2001:db8::1]:443", value)
        return model.HostPort(host="192.0.2.1", port=1)

    def address(self, value: Any, path: str) -> Address:
        """One address of this host, also the unspecified one."""
        network = self.network(value, path)
        if network.prefixlen != network.max_prefixlen:
            self.refuse("bad_address", path, "one address", str(network))
        return network.network_address


def _six(text: str) -> str:
    """An IPv6 address in its own form; empty for none, and for an IPv4 address within."""
    try:
        found = ipaddress.IPv6Address(text)
    except ValueError:
        return ""
    return "" if found.ipv4_mapped else str(found)
