"""A start reads the bundles of records first, however many others there are. Real daemon."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.house import bundles, in_process

MOST = 4
TOML = f"[limits]\nbundles = {MOST}\n"
ACME = bundles.author()


async def test_installed_plugin_starts_beside_more_bundles_than_the_limit():
    """All of them verify, and their names sort before its own."""
    with tempfile.TemporaryDirectory(prefix="house-") as place:
        async with in_process.opened(Path(place), author=ACME, toml=TOML) as home:
            home.drop("zz-installed", id="acme.demo")
            await home.armed("acme.demo")
            for number in range(3 * MOST):
                home.drop(f"{number:02}", id=f"acme.stranger-{number:02}")
            await in_process.until(lambda: len(home.app.api.lifecycle.rejected()) >= MOST, "some are too many")
        async with in_process.opened(Path(place), author=ACME, toml=TOML) as home:
            await home.until_plugin("acme.demo", lambda view: view["available"] and view["runtime"]["state"] == "armed")
            assert home.driven.running["acme.demo"] == 1
            await in_process.until(lambda: len(home.app.api.lifecycle.rejected()) >= MOST, "some are too many still")
