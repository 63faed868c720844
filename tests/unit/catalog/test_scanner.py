"""Which bundles a scan may compare with what is known of them, and which it has to read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from latticed.bundle.read import ReadLimits
from latticed.catalog import root as roots
from latticed.catalog.scanner import Judge
from latticed.trust.policy import TrustPolicy
from tests.house import bundles, catalogs
from tests.house.clocks import ManualClock

ACME = bundles.author()


@pytest.mark.parametrize(
    ("age_s", "took_s", "compared"),
    [
        (1.0, 0.0, True),
        (1.0, 5.0, True),
        (0.002, 0.0, False),
        (0.002, 5.0, False),
        (-2.0, 5.0, False),
        (-0.05, 0.0, False),
        (-30.0, 0.0, False),
        (-86_400.0, 0.0, True),
        (-86_400.0, 5.0, True),
    ],
)
def test_files_are_read_again_if_they_changed_just_before_or_while_they_were_read(
    tmp_path: Path, age_s: float, took_s: float, *, compared: bool
) -> None:
    """However long reading took. Files far ahead, as after a clock was set back, are as good as old ones."""
    bundle = bundles.drop(tmp_path, "demo", author=ACME)
    changed_us = max(path.stat().st_ctime_ns for path in (bundle.manifest_path, bundle.artifact_path)) // 1000
    clock, trusted = ManualClock(now_us=changed_us + round(age_s * 1_000_000)), catalogs.trusting(ACME)

    def policy() -> TrustPolicy:
        clock.advance(took_s)
        return trusted

    judge = Judge(limits=ReadLimits(), policy=policy, host_version=catalogs.HOST_VERSION, clock=clock)
    root = roots.open_root(tmp_path)
    try:
        first = judge.judge("demo", root)
        assert (judge.judge("demo", root, known=first, compare=True) is first) is compared
    finally:
        root.close()
