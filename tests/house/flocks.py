"""Thousands of small bundles, and a comparison of a daemon's view of them with a fresh scan."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from latticed.catalog.catalog import Catalog
from latticed.kit.clock import SystemClock
from latticed.model.verdict import Refused, Verified
from latticed.trust import policy
from tests.house import bundles, catalogs, daemons


def name_of(number: int) -> str:
    return f"b{number:05}"


def id_of(number: int) -> str:
    return f"acme.{name_of(number)}"


def put(parent: Path, author: bundles.Author, numbers: range, *, version: str = "1.0.0") -> None:
    """Bundles by number, each with an artifact of its own; those that are there are replaced file by file."""
    for number in numbers:
        artifact = b"#!/bin/sh\n# %d %s\n" % (number, version.encode())
        raw = bundles.manifest_v1(id=id_of(number), version=version)
        bundles.write(parent / name_of(number), bundles.signed(raw, artifact, author), artifact)


def take(parent: Path, numbers: range) -> None:
    for number in numbers:
        shutil.rmtree(parent / name_of(number))


def tamper(parent: Path, numbers: range) -> None:
    for number in numbers:
        bundles.tamper(parent / name_of(number) / "artifact")


def fresh(place: daemons.Place) -> dict[str, Verified | Refused]:
    """What a new catalog finds in the plugin directory."""
    trusted = policy.decode(place.trust.read_bytes())

    async def look() -> dict[str, Any]:
        catalog = Catalog({"plugins": place.plugins}, policy=lambda: trusted, host_version="0.1.0", clock=SystemClock())
        async with catalog:
            return {name.partition("/")[2]: verdict for name, verdict in catalogs.verdicts(catalog).items()}

    return asyncio.run(look())


def differences(daemon: daemons.Daemon, found: dict[str, Verified | Refused]) -> list[str]:
    """A few of the differences between the daemon's view and that of a fresh scan, as text."""
    wrong: list[str] = []
    refused = {name: verdict.code.value for name, verdict in found.items() if isinstance(verdict, Refused)}
    shown = daemon.rejected()
    wrong += [f"{name}: {refused.get(name)} on disk, shown {shown.get(name)}" for name in refused.keys() ^ shown.keys()]
    wrong += [f"{name}: {refused[name]} on disk, {shown[name]} shown" for name in refused.keys() & shown.keys()
              if refused[name] != shown[name]]  # fmt: skip
    verified = {verdict.manifest.id: verdict for verdict in found.values() if isinstance(verdict, Verified)}
    records = {one["id"]: one for one in daemon.get("/api/plugins").json()}
    wrong += [f"{plugin_id}: on disk and not shown" for plugin_id in verified.keys() - records.keys()]
    for plugin_id, record in records.items():
        if fault := _fault(record, verified.get(plugin_id)):
            wrong.append(f"{plugin_id}: {fault}")
    return sorted(wrong)[:10]


def _fault(record: dict[str, Any], verdict: Verified | None) -> str:
    """What is wrong with one record, given what is on disk of its id."""
    if record["available"] != (verdict is not None):
        return f"available {record['available']}, on disk {'verified' if verdict else 'nothing that verifies'}"
    if verdict is None:
        return ""
    shown = record.get("candidate") or record
    if shown["version"] != verdict.manifest.version:
        return f"version {verdict.manifest.version} on disk, shown {json.dumps(shown)[:200]}"
    if "candidate" not in record and record["artifact_sha256"] != verdict.artifact_sha256:
        return f"artifact {verdict.artifact_sha256} on disk, shown {record['artifact_sha256']}"
    return ""


def peak_mb(pid: int) -> float:
    """The most memory that a process has had resident, in MB."""
    return _status_kib(pid, "VmHWM") * 1024 / 1e6


def resident_mb(pid: int) -> float:
    return _status_kib(pid, "VmRSS") * 1024 / 1e6


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
