"""The commands of the README, as printed: four in an author's empty directory, and one more on another host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import daemons, index_servers, pages

pytestmark = pytest.mark.daemon

README = pages.CHECKOUT / "README.md"
URL = "https://plugins.example.org"


def block(begin):
    """The README's block that begins like this."""
    (found,) = [one.text for one in pages.blocks(README) if one.language == "sh" and one.text.startswith(begin)]
    return found


def typed(text, directory):
    """Run the lines in a shell that ends with the first that fails; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    command = ["/bin/sh", "-e", "-c", text]
    done = subprocess.run(
        command, cwd=directory, env={"PATH": path}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plugin_is_published_with_four_commands_and_installed_with_one(tmp_path):
    """What the other host then runs is what the author signed; a release that was tampered with on the way is not."""
    commands = [line for line in block("mkdir shop").splitlines() if line.startswith("latticectl")]
    assert len(commands) == 4
    with index_servers.serving(tmp_path) as web, daemons.placed() as place:
        typed(block("mkdir shop").replace(URL, web.base.rstrip("/")), tmp_path)
        shop = tmp_path / "shop"
        keys = {name: typed(f"latticectl key show {name}.key", shop).strip() for name in ("shop", "index")}
        site = shop / "site"
        web.files |= {f"/{path.relative_to(site)}": path.read_bytes() for path in site.rglob("*") if path.is_file()}
        place.write(place.trust, f'{{"trusted_publishers": {{"shop": "{keys["shop"]}"}}}}'.encode())
        place.write(place.home / "authority.pem", web.authority.read_bytes())
        place.env["SSL_CERT_FILE"] = str(place.home / "authority.pem")
        place.set(
            f'[market.sources.shop]\nurl = "{web.base}plugins.json"\nkeys = ["{keys["index"]}"]\n'
            f'origins = ["{web.origin}"]\n'
        )
        with place.running() as daemon:
            words = block("latticectl market install").split()[1:]
            artifact = "/shop.demo/0.1.0/artifact"
            whole, web.files[artifact] = web.files[artifact], b"#!/bin/sh\n"
            assert daemon.ctl("market", "refresh").returncode == 0
            refused = daemon.ctl(*words)
            assert refused.returncode != 0
            assert daemon.plugin("shop.demo") is None
            web.files[artifact] = whole
            done = daemon.ctl(*words)
            assert done.returncode == 0, done.stdout + done.stderr
            daemon.activate("shop.demo")
            greeting = {"action": "greet", "payload": {"name": "you"}}
            answer = daemon.post("/api/plugins/by-id/shop.demo/invoke", greeting)
            assert answer.json()["result"] == {"hello": "you", "count": 1}
