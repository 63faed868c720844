"""The authority of a fleet and its servers' certificates, as OpenSSL and real nats-servers judge them."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest

from latticed.fleet import certificates
from latticed.fleet.nats_engine import NatsEngine
from latticed.model.errors import Problem
from tests.house import nats_servers

NOW_S = int(time.time())


@pytest.fixture(scope="module")
def authority():
    return certificates.authority("home", now_s=NOW_S)


def handshake(tmp_path, authority, issued, name):
    """None when the client takes the server for `name`, else why not."""
    (tmp_path / "pem").write_bytes(issued.certificate + issued.private_key)
    client_tls = ssl.create_default_context(cadata=authority.certificate.decode())
    client_tls.verify_flags |= ssl.VERIFY_X509_STRICT  # RFC 5280 to the letter
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(tmp_path / "pem")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_tls.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_tls.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
    return None


@pytest.mark.parametrize("name", ["fleet.example.org", "fleet-1", "192.0.2.7", "2001:db8::7"])
def test_server_is_taken_under_each_of_its_names(tmp_path, authority, name):
    hosts = ["fleet.example.org", "fleet-1", "192.0.2.7", "2001:db8::7"]
    issued = certificates.server(authority, hosts, now_s=NOW_S)
    assert handshake(tmp_path, authority, issued, name) is None


def test_server_is_not_taken_under_another_name(tmp_path, authority):
    issued = certificates.server(authority, ["fleet.example.org"], now_s=NOW_S)
    assert "mismatch" in handshake(tmp_path, authority, issued, "other.example.org")


def test_certificate_of_another_authority_of_the_same_name_is_refused(tmp_path, authority):
    other = certificates.authority("home", now_s=NOW_S)
    issued = certificates.server(other, ["fleet.example.org"], now_s=NOW_S)
    assert handshake(tmp_path, authority, issued, "fleet.example.org") is not None


def test_server_cannot_issue_certificates(tmp_path, authority):
    middle = certificates.server(authority, ["fleet.example.org"], now_s=NOW_S)
    issued = certificates.server(middle, ["victim.example.org"], now_s=NOW_S)
    chained = certificates.IssuedCertificate(
        certificate=issued.certificate + middle.certificate, private_key=issued.private_key
    )
    assert handshake(tmp_path, authority, chained, "victim.example.org") is not None


def test_certificate_that_has_ended_is_refused(tmp_path):
    then_s = NOW_S - (certificates.SERVER_DAYS + 1) * 86_400
    old = certificates.authority("home", now_s=then_s)
    issued = certificates.server(old, ["fleet.example.org"], now_s=then_s)
    assert "expired" in handshake(tmp_path, old, issued, "fleet.example.org")


@pytest.mark.parametrize(
    "hosts", [[], ["*"], ["*.example.org"], ["a b"], ["A.example"], [""], ["a"] * 17, ["a\n"], ["-a"]]
)
def test_names_that_no_server_has_are_refused(authority, hosts):
    with pytest.raises(Problem) as found:
        certificates.server(authority, hosts, now_s=NOW_S)
    assert found.value.code == "bad_request"


async def test_real_servers_of_a_cluster_take_each_other_and_a_node_takes_them(tmp_path, authority):
    fleet = nats_servers.configured(tmp_path / "nats", 3)
    issued = certificates.server(authority, ["127.0.0.1", "localhost"], now_s=NOW_S)
    fleet.ca.write_bytes(authority.certificate)
    (fleet.place / "server.pem").write_bytes(issued.certificate)
    (fleet.place / "server.key").write_bytes(issued.private_key)
    try:
        for server in fleet.servers:
            server.start()
        async with asyncio.timeout(60), fleet.connected("controller") as connection:
            await fleet.provide(connection)  # three replicas: they have found each other
            async with fleet.connected("web-1") as node:
                assert await NatsEngine(node, "web-1").desired() is None
    finally:
        for server in fleet.servers:
            server.stop()
