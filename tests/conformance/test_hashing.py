"""How often an artifact is hashed from the decision to activate a plugin until it is armed."""

from __future__ import annotations

import hashlib

import pytest

from tests.house import in_process

TIMES = {"worker": 2, "system": 1}
"""By plugin type. Both: at the start (are these the bytes that were verified?); the stored pair was hashed when it was
written, at the installation. A worker besides: its template is parsed before the decision is recorded."""
ARTIFACTS = {
    "worker": b"hello " * 2_000,
    "system": b'#!/bin/sh\nread -r _\necho \'{"ok": true, "message": "", "result": null}\'\nexit\n' + b"#" * 500_000,
}


class Counting:
    """hashlib.sha256 that counts the bytes of each hash."""

    def __init__(self):
        self.sha256 = hashlib.sha256
        self.hashes = []

    def __call__(self, data=b"", **options):
        one = _Counted(self.sha256(data, **options), len(data))
        self.hashes.append(one)
        return one

    def whole(self, size):
        return sum(one.size >= size for one in self.hashes)


class _Counted:
    def __init__(self, digest, size):
        self._digest = digest
        self.size = size

    def update(self, data):
        self.size += len(data)
        self._digest.update(data)

    def __getattr__(self, name):
        return getattr(self._digest, name)


@pytest.mark.parametrize("kind", TIMES)
async def test_activation_hashes_the_artifact_only_as_often_as_needed(monkeypatch, kind):
    async with in_process.opened(real=True, toml='[runners]\nsystem = "process"\nworker = "worker"\n') as home:
        bundle = home.drop(type=kind, artifact=ARTIFACTS[kind], capabilities=["kv:read"])
        await home.seen(bundle.id)
        assert (await home.decide(bundle.id, "installed")).status == 200
        counting = Counting()
        monkeypatch.setattr(hashlib, "sha256", counting)
        assert (await home.decide(bundle.id, "active")).status == 200
        monkeypatch.undo()
        assert (await home.plugin(bundle.id))["runtime"]["state"] == "armed"
        assert counting.whole(len(ARTIFACTS[kind])) == TIMES[kind]
