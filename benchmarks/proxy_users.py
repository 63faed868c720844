"""PROXY: an intent of proxies with 2,000 users, read, checked and rendered, as the root helper does at each offer."""

from __future__ import annotations

import base64
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks import rows
from latticed.system.proxy import check, decode, intent, render

if TYPE_CHECKING:
    from benchmarks.bench import Bench

USERS: Final = 2_000
MOST_S: Final = 1.0
_VALUES: Final = {
    "uuid": "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
    "password": "a-password-of-this-user",
    "key": base64.b64encode(bytes(32)).decode("ascii"),
}


def measure(bench: Bench) -> list[rows.Row]:
    plain = _plain()
    values = {name: _VALUES[form] for name, form in intent.references(decode.read(plain)).items()}
    samples = [_once(plain, values) for _ in range(bench.pairs)]
    median = statistics.median(samples)
    return [
        rows.Row(
            target="PROXY",
            what=f"{USERS:,} users at three inbounds: read, checked, rendered",
            ours=f"{median * 1_000:.0f} ms",
            wanted=f"≤ {MOST_S:g} s",
            met=median <= MOST_S,
            samples={"ours": samples},
        )
    ]


def _once(plain: dict[str, Any], values: dict[str, str]) -> float:
    began = time.perf_counter()
    read = decode.read(plain)
    assert check.check(read) == ()
    assert render.render(read, values)
    return time.perf_counter() - began


def _plain() -> dict[str, Any]:
    tls = {"server_name": "vpn.example.org", "certificate_file": "/etc/ssl/vpn.pem", "key_file": "/etc/ssl/vpn.key"}
    return {
        "host": "vpn.example.org",
        "secret_name": "PROXY_USERS",
        "api": {"port": 9_180, "secret": "${secret:PROXY_API}"},
        "inbounds": [
            {"tag": "front", "protocol": "vless", "port": 443, "tls": tls},
            {"tag": "fast", "protocol": "hysteria2", "port": 443, "tls": tls},
            {"tag": "plain", "protocol": "shadowsocks", "port": 8_388, "password": "${secret:PROXY_SS}"},
        ],
        "users": [{"id": f"user-{number}", "quota_bytes": 1 << 40} for number in range(USERS)],
    }
