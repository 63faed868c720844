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
def test_environment_known_files_and_modules_are_put_back(given, monkeypatch):
    """Also after an error in the block."""
    monkeypatch.delenv(NAME, raising=False)
    if given is not None:
        monkeypatch.setenv(NAME, given)
    before = (dict(os.environ), mimetypes.knownfiles[:], sys.modules.copy(), sys.meta_path[:])
    within = []

    def failing_import():
        with lean_imports.lean():
            within.append((os.environ[NAME], mimetypes.knownfiles[:]))
            raise ImportError

    with pytest.raises(ImportError):
        failing_import()
    assert within == [("1", [])]
    assert (dict(os.environ), mimetypes.knownfiles, sys.modules, sys.meta_path) == before


def test_what_was_left_out_is_there_when_it_is_used():
    """Whole, and for everyone: by aiohttp's own functions, by their names, by an import of today."""
    code = """
import os
from latticed import daemon
daemon.imported_app()
import html, attr, msgspec
os.environ["http_proxy"] = "http://proxy.example:3128"
from aiohttp.helpers import proxies_from_env
print(proxies_from_env()["http"].proxy, html.unescape("&lt;&eacute;&notit;"), attr.validators.in_([1]).options)
print(msgspec.inspect.type_info(int), len(msgspec.json.schema(dict[str, int])))
import bz2, lzma, html.entities, urllib.request
print(len(bz2.compress(b"")), "eacute;" in html.entities.html5, urllib.request.urlopen.__name__)
"""
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout.decode().splitlines() == [
        "http://proxy.example:3128 <\u00e9\u00acit; (1,)",
        "IntType(gt=None, ge=None, lt=None, le=None, multiple_of=None) 2",
        "14 True urlopen",
    ]


def test_agent_of_a_fleet_has_no_parser_of_arguments_and_semver_has_its_program():
    """The agent is two processes of few MiB, and its unit gives it none."""
    code = """
import sys, warnings
from latticed.fleet import agent
agent._warm()
print("argparse" in sys.modules)
import semver
warnings.simplefilter("ignore")
print(semver.createparser().prog, semver.Version.parse("1.2.3") > semver.Version.parse("1.2.3-a"))
import semver.cli
print(semver.cli.main.__module__)
"""
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout.decode().split() == ["False", "semver", "True", "semver.cli"]
