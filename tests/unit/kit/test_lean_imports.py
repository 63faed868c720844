"""What a start of the daemon leaves in memory: looked at in interpreters of their own."""

from __future__ import annotations

import mimetypes
import os
import subprocess
import sys

import pytest

from latticed.kit import lean_imports

NAME = "FROZENLIST_NO_EXTENSIONS"
# As the daemon imports it; what is mapped is what the kernel says.
LOOKING = """
import mimetypes, sys
from latticed import daemon
daemon.imported_app()
from aiohttp import web_fileresponse
print("libstdc++" in open("/proc/self/maps").read(), len(web_fileresponse.CONTENT_TYPES.types_map[True]) > 500)
"""


def test_app_is_imported_without_libstdcxx_and_media_types_of_host():
    """The host's file, if it has one, knows far more types than Python's own table of about 150."""
    found = subprocess.run([sys.executable, "-P", "-c", LOOKING], stdout=subprocess.PIPE, check=True)
    assert found.stdout.decode().split() == ["False", "False"]


def test_signals_of_aiohttp_work_without_the_extension():
    """They are the lists of handlers that frozenlist is for."""
    code = """
import asyncio
from latticed import daemon
daemon.imported_app()
from aiohttp import web
app = web.Application()
async def started(app): print("started")
app.on_startup.append(started)
runner = web.AppRunner(app)
asyncio.run(runner.setup())
try: app.on_startup.append(started)
except RuntimeError: print("frozen")
"""
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout.decode().split() == ["started", "frozen"]


@pytest.mark.parametrize("given", ["", "1", None])
def test_environment_and_known_files_are_put_back(given, monkeypatch):
    """Also after an error in the block."""
    monkeypatch.delenv(NAME, raising=False)
    if given is not None:
        monkeypatch.setenv(NAME, given)
    before = (dict(os.environ), mimetypes.knownfiles[:])
    within = []

    def failing_import():
        with lean_imports.lean():
            within.append((os.environ[NAME], mimetypes.knownfiles[:]))
            raise ImportError

    with pytest.raises(ImportError):
        failing_import()
    assert within == [("1", [])]
    assert (dict(os.environ), mimetypes.knownfiles) == before


def test_memory_freed_in_the_middle_of_the_heap_is_returned():
    """16 MiB in pieces that malloc keeps, freed below one piece that stays."""
    code = """
from latticed import daemon
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4
pieces = [bytes(1000) for _ in range(16_000)]
last = pieces.pop()
pieces.clear()
before = resident()
daemon._return_free_memory()
print(before - resident() > 8_000)
"""
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout.decode().split() == ["True"]
