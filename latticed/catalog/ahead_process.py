"""The process that judges bundles ahead of the daemon (`catalog.ahead`).

Its argument is the descriptor of the plugin directory. On standard input comes an `Order` in MessagePack. On standard
output go frames: four bytes of length, then a `Frame` in MessagePack for each `BATCH` names.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.bundle.read import ReadLimits
from latticed.catalog.root import Root
from latticed.catalog.scanner import Judge
from latticed.kit.clock import SystemClock
from latticed.trust import keys
from latticed.trust import policy as policies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


BATCH: Final = 64
"""Names in a frame: 20 ms of work."""


class Files(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """One bundle as in `scanner.KnownFiles`; `name` as in the file system."""

    name: bytes
    fingerprint: bytes
    sha256: str
    size: int
    interpreter: str


class Frame(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """What was found out: files and their hashes, and the signatures that hold (`keys.hold`)."""

    files: tuple[Files, ...]
    held: tuple[bytes, ...]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do; `policy` as `trust.policy.encode` writes it, names as in the file system."""

    manifest_bytes: int
    artifact_bytes: int
    deadline_s: float
    policy: bytes
    host_version: str
    names: tuple[bytes, ...]


def order(judge: Judge, names: Sequence[str]) -> bytes:
    """Have `names` judged as `judge` does now."""
    limits = judge.limits
    asked = Order(
        manifest_bytes=limits.manifest_bytes,
        artifact_bytes=limits.artifact_bytes,
        deadline_s=limits.deadline_s,
        policy=policies.encode(judge.policy()),
        host_version=judge.host_version,
        names=tuple(os.fsencode(name) for name in names),
    )
    return msgspec.msgpack.encode(asked)


def _judge(asked: Order) -> Judge:
    limits = ReadLimits(
        manifest_bytes=asked.manifest_bytes, artifact_bytes=asked.artifact_bytes, deadline_s=asked.deadline_s
    )
    policy = policies.decode(asked.policy)
    return Judge(limits=limits, policy=lambda: policy, host_version=asked.host_version, clock=SystemClock())


def main() -> None:
    """Judge the names in their order and write what was found, to the end or until nobody reads it any more."""
    root = Root(int(sys.argv[1]))
    asked = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)
    judge, out = _judge(asked), sys.stdout.buffer
    try:
        for begin in range(0, len(asked.names), BATCH):
            files = tuple(_judged(judge, root, asked.names[begin : begin + BATCH]))
            frame = msgspec.msgpack.encode(Frame(files=files, held=keys.take_held()))
            out.write(len(frame).to_bytes(4, "big") + frame)
            out.flush()
    except BrokenPipeError:
        os._exit(0)  # the daemon has all it needs, or is gone


def _judged(judge: Judge, root: Root, names: Sequence[bytes]) -> Iterator[Files]:
    for name in names:
        try:
            entry = judge.judge(os.fsdecode(name), root)
        except OSError:
            continue  # for the daemon to find out
        if entry.fingerprint is not None and entry.hashed is not None:
            sha256, size = entry.hashed
            yield Files(
                name=name, fingerprint=entry.fingerprint, sha256=sha256, size=size, interpreter=entry.interpreter
            )
