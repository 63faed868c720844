"""Namespaces and mounts of a test's own, made with unshare(1)."""

from __future__ import annotations

import subprocess

import pytest

UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")


def needed() -> None:
    """Skip where they cannot be made."""
    try:
        ran = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount and pid namespaces can be made here: unshare(1) is missing")
    if ran.returncode:
        pytest.skip(f"no mount and pid namespaces can be made here: {ran.stderr.strip()[:200]}")
