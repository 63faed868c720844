"""Built-in plugins that a test writes itself: a folder with a manifest, and a class."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticed.catalog.builtins import Builtins
from latticed.runners.contract import PluginToRun
from latticed.system.builtin import Builtin
from latticed.system.plugin import SystemPlugin
from latticed.trust import policy

VERSION = "1.2.3"


class Echo(SystemPlugin):
    """Answers `echo` with its payload, `get` with a value of its bucket."""

    async def do_echo(self, payload: Any) -> Any:
        return payload

    async def do_get(self, _payload: Any) -> Any:
        return await self.host.call("kv.get", key="a")


def made(folder: Path, kind: type[SystemPlugin] = Echo, *, name: str = "demo", **fields: Any) -> Builtin:
    """A built-in plugin latticed.NAME, written below `folder`; `fields` go into its manifest, None takes one out."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    plain = {"schema": "latticed.manifest.v2", "id": f"latticed.{name}", "name": "Demo", "type": "system"}
    plain = {**plain, "capabilities": ["kv:read"], **fields}
    manifest = {name: value for name, value in plain.items() if value is not None}
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "plugin.py").write_text(f"# stands for the code of {kind.__name__}\n")
    return Builtin(folder=place, load=lambda: kind)


@dataclass(slots=True, kw_only=True)
class Brought:
    """A latticed's only built-in plugin, ready to be started."""

    builtin: Builtin
    builtins: Builtins
    plugin: PluginToRun

    @property
    def path(self) -> Path:
        return self.builtin.folder

    @property
    def id(self) -> str:
        return self.plugin.id

    artifact = b""


def brought(builtin: Builtin, *, version: str = VERSION) -> Brought:
    """What a latticed of `version` makes of it."""
    builtins = Builtins([builtin], version=version)
    ((_, verdict),) = builtins.verdicts(lambda: policy.NOBODY)
    plugin = PluginToRun(id=verdict.manifest.id, identity=verdict.identity, manifest=verdict.manifest)
    return Brought(builtin=builtin, builtins=builtins, plugin=plugin)
