"""Proxied services in a real browser: attacks of one on the origin that all share."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house import backends, netns, routed
from tests.house.routed import ID

OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"
    " --disable-component-update --disable-sync --metrics-recording-only --remote-debugging-port=0"
).split()


@contextlib.asynccontextmanager
async def chromium(url: str, home: Path):
    """A headless Chromium that opens `url`; a child of this thread, and so in its network namespace."""
    command = [shutil.which("chromium") or "", *OPTIONS, f"--user-data-dir={home}", url]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, **quiet, start_new_session=True)
    try:
        yield
    finally:
        child.terminate()
        await asyncio.to_thread(child.wait)


async def told(backend: backends.Backend) -> str:
    """Wait for the page's report and return it."""
    async with asyncio.timeout(40):
        while not (said := [path for path in backend.paths if "told?" in path]):  # noqa: ASYNC110 - it counts, it does not tell
            await asyncio.sleep(0.05)
    return said[0].partition("?")[2]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed here")
def test_service_worker_controls_only_pages_below_its_services_prefix(tmp_path):
    """`Service-Worker-Allowed: /` is not forwarded, so it cannot control other plugins' pages."""
    if reason := netns.why_not():
        pytest.skip(reason)

    async def scenario() -> None:
        async with backends.running() as alone, chromium(f"{alone.origin}/assets/claim.html", tmp_path / "one"):
            assert await told(alone) == "registered"
        async with backends.running() as backend, routed.opened(tmp_path) as world:
            await world.serve(backend, public=["/assets/**"])
            url = f"http://{routed.HOST}:{world.port()}/{ID}/assets/claim.html"
            async with chromium(url, tmp_path / "two"):
                assert await told(backend) == "SecurityError"

    netns.run((), scenario)
