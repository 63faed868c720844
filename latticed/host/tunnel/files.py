"""The files of one tunnel: configurations in the state directory, and credentials in the runtime one while it runs.

All are 0600 and belong to the user that cloudflared runs as. Only the daemon's user can enter the directories.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from latticed.host.egress import url
from latticed.kit import files
from latticed.kit.value import Value
from latticed.model import hosts
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.host.tunnel.spec import IngressRule, TunnelSpec
    from latticed.model.egress import Origin
    from latticed.sandbox.spec import Ids


class ConnectorFiles(Value, frozen=True, kw_only=True):
    """What one connector is started with: the configuration, and the credentials that it names."""

    config: Path
    credentials: Path

    def remove(self) -> None:
        """Remove both, where they are. Blocks. OSError."""
        for path in (self.credentials, self.config):
            path.unlink(missing_ok=True)


class TunnelFiles(Value, frozen=True, kw_only=True):
    """The two directories of one tunnel, which need not exist; `write` makes them."""

    state: Path
    runtime: Path

    def of(self, name: str) -> ConnectorFiles:
        """The files of one connector; two of a tunnel that run beside each other have other names."""
        return ConnectorFiles(config=self.state / f"{name}.yml", credentials=self.runtime / f"{name}.json")

    def clear(self) -> None:
        """Remove both directories and what is in them; errors are ignored. Blocks."""
        for directory in (self.state, self.runtime):
            shutil.rmtree(directory, ignore_errors=True)


def write(path: Path, data: bytes) -> None:
    """Replace one file atomically, mode 0600; makes its directory. Blocks. Problem service_unavailable."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.replace(path, data, mode=0o600)
    except OSError as error:
        reason = f"expected room for the tunnel's files, found: {error.strerror or type(error).__name__}"
        raise Problem("service_unavailable", reason, "free space on the disk of state_dir and runtime_dir") from error


async def hand_over(paths: tuple[Path, ...], ids: Ids | None) -> None:
    """Change the owner of these files to `ids`, the user that the program runs as; None: the daemon's own user, and
    nothing is changed. OSError.
    """
    if ids is not None:
        for one in paths:
            os.chown(one, ids.uid, ids.gid)


def render(spec: TunnelSpec, origins: Mapping[str, Origin], credentials: Path) -> bytes:
    """The configuration of cloudflared as JSON, which is valid YAML (YAML 1.2, section 1.3) with all strings quoted.

    `origins`: the origin of each service, as `spec.bound` gives them. They are named by the address that the operator
    bound, so that cloudflared resolves no names. `credentials`: the path that cloudflared reads them from.
    """
    config = {
        "tunnel": spec.tunnel,
        "credentials-file": str(credentials),
        "ingress": [_entry(rule, origins.get(rule.service)) for rule in spec.ingress],
    }
    return json.dumps(config, indent=1).encode("ascii") + b"\n"


def _entry(rule: IngressRule, origin: Origin | None) -> dict[str, Any]:
    """One ingress rule as the configuration has it; `origin` is None for `http_status:…`."""
    entry: dict[str, Any] = {"service": rule.service}
    if rule.hostname:
        entry["hostname"] = rule.hostname
    if rule.path:
        entry["path"] = "^" + rule.path.replace(
            ".", "\\."
        )  # cloudflared takes a regular expression, the spec has a plain prefix
    if origin is None:
        return entry
    address = str(origin.address)
    entry["service"] = f"{origin.scheme}://{hosts.bracketed(address)}:{origin.port}"
    # The origin is dialled by address, but is to see the name: in Host, and for https in SNI, by which its certificate
    # is verified, too.
    if address != origin.host:
        port = "" if origin.port == url.DEFAULT_PORTS[origin.scheme] else f":{origin.port}"
        entry["originRequest"] = {"httpHostHeader": hosts.bracketed(origin.host) + port}
        if origin.scheme == "https":
            entry["originRequest"]["originServerName"] = origin.host
    return entry
