"""Which certificate authorities https trusts by default: those of this host, though aiohttp is imported without any."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys

import pytest

from latticed.host.egress import authorities
from tests.house import origins
from tests.house.origins import answer, serving

ENVIRONMENT = ssl.get_default_verify_paths().openssl_cafile_env
# As the daemon does it: everything is imported within the block, before there are threads.
ASKING = """
import asyncio, sys
from latticed.host.egress import authorities
with authorities.unread():
    from latticed import app
from latticed.host.call import HostError
from latticed.host.egress import redirects, url
from latticed.host.egress.client import EgressClient
from latticed.host.egress.guard import Guard
from latticed.model import egress
from latticed.model.egress import EgressRights

async def main(port):
    rights = EgressRights(origins=(egress.origin(f"https://backend.lan:{port}=127.0.0.1"),))
    target = url.parse(f"https://backend.lan:{port}/")
    async with EgressClient(Guard()) as client:
        request = redirects.EgressRequest(method="GET", target=target, header={}, body=b"")
        try:
            print((await client.send(request, rights)).status)
        except HostError as error:
            print(error)

asyncio.run(main(int(sys.argv[1])))
"""
UNUSED = (
    *("tarfile", "zipfile", "difflib", "importlib.metadata", "frozenlist._frozenlist"),
    *("bz2", "html.entities", "http.client", "lzma", "urllib.request", "zoneinfo", "sysconfig"),
    *("latticed.ledger.rebuild", "latticed.sandbox.stub"),
)
"""Modules that a start does not need; together they would take 4.5 MiB."""
UNLOADED = ("attr.validators", "msgspec.inspect")
"""Modules that are there as names only, until one of their attributes is read."""


@pytest.mark.parametrize("known", [True, False])
async def test_https_trusts_authorities_of_host_and_no_others(known, tmp_path):
    """The host's are those of SSL_CERT_FILE here; another authority has signed the server's certificate or not."""
    authority, other = origins.Authority(), origins.Authority()
    file = tmp_path / "authorities.pem"
    file.write_bytes((authority if known else other).certificate())
    async with serving(answer(b"here"), tls=authority.server("backend.lan")) as server:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-c", ASKING, str(server.port)),
            env={**os.environ, ENVIRONMENT: str(file)},
            stdout=subprocess.PIPE,
        )
        said = (await child.communicate())[0].decode()
    assert ("200" in said, "does not verify" in said) == (known, not known)


async def test_one_context_is_made_and_verifies_host_names():
    found = await authorities.trusted()
    assert (found.verify_mode, found.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert await authorities.trusted() is found


@pytest.mark.parametrize("given", ["/etc/ssl/some.pem", None])
def test_no_authority_is_read_within_block_and_environment_is_put_back(given, monkeypatch):
    """Also after an error in the block."""
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    if given is not None:
        monkeypatch.setenv(ENVIRONMENT, given)
    before = dict(os.environ)
    read = []

    def failing_import():
        with authorities.unread():
            read.append(ssl.create_default_context().cert_store_stats()["x509"])
            raise ImportError

    with pytest.raises(ImportError):
        failing_import()
    assert (read, dict(os.environ)) == ([0], before)


def test_start_imports_no_module_that_it_does_not_need():
    """Their memory would stay with every daemon for as long as it runs. Imported as the daemon does it."""
    code = "import sys; from latticed import daemon; daemon.imported_app(); print(*sys.modules)"
    code += f"; print(*(type(sys.modules[name]).__name__ for name in {UNLOADED}))"
    found = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    imported, types = (line.split() for line in found.stdout.decode().splitlines())
    assert "latticed.lifecycle.backup" in imported
    assert [name for name in UNUSED if name in imported] == []
    assert types == ["_LazyModule"] * len(UNLOADED)
