"""latticed's own root helper with an nginx below a directory of the test, on two ports of loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from latticed.plans.nginx import NginxKind, place
from latticed.plans.programs import ProgramTools
from latticed.settings.programs import NginxSettings
from latticed.settings.shapes import HttpSettings
from tests.house import apply_helpers, nginxes, ports


@dataclass
class WebPlace(apply_helpers.Place):
    """Certificates lie below `live_certificates`; `http` is the section `[http]`."""

    ports: list[int] = field(default_factory=lambda: [ports.free(), ports.free()])
    http: dict[str, Any] = field(default_factory=dict)
    user: str = "www-data"
    static: Path = Path("/nonexistent")

    def __post_init__(self) -> None:
        self.settings = {"kinds": ["nginx"], "poll_s": 1.0, **self.settings}
        super().__post_init__()
        self.live_certificates.mkdir(mode=0o700)

    @property
    def web(self) -> Path:
        return self.home / "web"

    @property
    def live_certificates(self) -> Path:
        return self.home / "certificates"

    def sections(self) -> str:
        """The settings that daemon and helper share."""
        nginx = {
            "directory": str(self.web),
            "user": self.user,
            "certificates": [str(self.home)],
            "files": [str(self.home)],
            "static_dir": str(self.static),
        }
        lines = [
            line
            for name, section in {"apply.nginx": nginx, "http": self.http}.items()
            for line in (f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items()))
        ]
        return "\n".join([*lines, ""])

    def write_settings(self) -> None:
        super().write_settings()
        with self.config.open("a") as config:
            config.write(self.sections())

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-I", "-m", "latticed.apply", "--config", str(self.config), *options]

    def document(self, *sites, **changes):
        listen = {"addresses": ["127.0.0.1"], "http": self.ports[0], "https": self.ports[1]}
        return nginxes.document(*sites, listen=listen, **changes)

    def get(self, host: str = "shop.example.org") -> int:
        """The status by plain HTTP, 0 where nothing answers."""
        with contextlib.suppress(ConnectionRefusedError):
            return nginxes.get(self.ports[0], host)[0]
        return 0

    def issue(self, name: str, authorities: trustme.CA, **options: Any) -> None:
        """A certificate and key of the site `name`, in place of those that it has."""
        issued(self.live_certificates / name, f"{name}.example.org", authorities, **options)


def issued(directory: Path, domain: str, authorities: trustme.CA, **options: Any) -> None:
    """A certificate and key in a directory, in place of those that it has."""
    made = authorities.issue_cert(domain, **options)
    directory.mkdir(parents=True, exist_ok=True)
    made.private_key_pem.write_to_path(directory / "privkey.pem")
    (directory / "fullchain.pem").write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))


@contextlib.contextmanager
def web_place(**options: Any) -> Iterator[WebPlace]:
    """A place whose helper is to be started; its nginx and dead-men end with it."""
    with apply_helpers.place() as made:
        found = WebPlace(home=made.home, **options)
        try:
            yield found
        finally:
            for pid in found.dead_men():
                os.kill(pid, signal.SIGKILL)
            ended(found)


def ended(there: WebPlace) -> None:
    """Its nginx is stopped: before the place is, where that is a disk of the test's own."""
    kind = NginxKind(place(NginxSettings(directory=str(there.web)), HttpSettings()))
    kind.restore(b"", ProgramTools(kind.programs))


@dataclass
class Web:
    """A place for an nginx of the kind, with two ports of loopback. Stopped afterwards, whatever happened."""

    directory: Path
    kind: NginxKind
    tools: ProgramTools
    ports: list[int] = field(default_factory=lambda: [ports.free(), ports.free()])

    def intent(self, *sites, **changes):
        listen = {"addresses": ["127.0.0.1"], "http": self.ports[0], "https": self.ports[1]}
        return nginxes.document(*sites, **{"listen": listen, **changes})

    def committed(self, intent) -> bytes:
        rendering = self.kind.render(intent, None, {})
        assert self.kind.check(intent, self.kind.observe(self.tools), "") == ()
        self.kind.validate(rendering, self.tools)
        self.kind.commit(rendering, self.tools)
        self.kind.self_check(rendering, self.tools)
        assert self.kind.holds(rendering, self.kind.observe(self.tools))
        return rendering

    def get(self, host):
        return nginxes.get(self.ports[0], host)[0]

    def live(self):
        return self.kind.observe(self.tools)

    def publish(self, plugin="acme.site", **files: str):
        """Files as the daemon keeps them, and the set of them for an intent."""
        for path, text in files.items():
            place = self.directory / "static/acme" / plugin / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return nginxes.published(
            plugin, **{path: hashlib.sha256(text.encode()).hexdigest() for path, text in files.items()}
        )

    def pid(self) -> int:
        return int((self.directory / "nginx.pid").read_text())


@contextlib.contextmanager
def web(directory: Path) -> Iterator[Web]:
    kind = NginxKind(nginxes.place_of(directory))
    made = Web(directory, kind, ProgramTools(kind.programs))
    try:
        yield made
    finally:
        kind.restore(b"", made.tools)
    assert not made.live().facts["nginx"]["running"]
