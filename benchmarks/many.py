"""Signed bundles by the thousand."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tests.house import bundles

if TYPE_CHECKING:
    from pathlib import Path

AUTHOR = bundles.author(seed=b"benchmarks only, never trusted!!")


def plugin_id(number: int) -> str:
    return f"acme.p{number:05d}"


def write(parent: Path, count: int, *, artifact_bytes: int = 64, first: int = 0, **fields: Any) -> None:
    """`count` bundles beneath `parent`, each with an artifact of its own."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        head = b"#!/bin/sh\nexit 0 # %d\n" % number
        artifact = head + os.urandom(max(0, artifact_bytes - len(head)))
        write_one(parent / plugin_id(number), number, artifact, **fields)


def write_one(path: Path, number: int, artifact: bytes, **fields: Any) -> None:
    """One bundle of `AUTHOR`, written file by file."""
    raw = bundles.manifest_v1(id=plugin_id(number), name=f"Plugin {number}", capabilities=["kv:read"], **fields)
    bundles.write(path, bundles.signed(raw, artifact, AUTHOR), artifact)


def policy() -> bytes:
    return bundles.policy_bytes(AUTHOR)
