"""Dynamic updates against a real BIND, a real Knot, and a scripted server with invalid answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools

import dns.flags
import dns.message
import dns.rcode
import dns.tsig
import pytest

from latticed.host.call import HostError
from latticed.host.ddns import spec as specs
from latticed.host.ddns.outcome import ProviderRefused, Published, UpdateFailed, UpdateJob
from latticed.host.ddns.rfc2136 import Rfc2136Provider
from latticed.host.egress.guard import Guard
from latticed.model import egress
from latticed.model.egress import EgressRights
from tests.house import dns_servers, processes
from tests.house.dns_servers import FAILING, KEY, OTHER_KEY, VALUES, ZONE

A, B = "93.184.216.34", "93.184.216.35"
names = (f"h{number}.{ZONE}" for number in itertools.count())


@pytest.fixture(scope="module", params=["bind", "knot"])
def server(request, tmp_path_factory):
    if dns_servers.installed(request.param) is None:
        pytest.skip(f"{request.param} is not installed here")
    with dns_servers.serving(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


async def publish(port, name, address=A, *, kind="A", ttl=1, zone="", key=KEY, value=None, algorithm="hmac-sha256"):
    asked = specs.DdnsPut(
        name=name,
        type=kind,
        provider="rfc2136",
        secret="${secret:KEY}",
        address=address,
        server=f"127.0.0.1:{port}",
        key=key,
        ttl=ttl,
        zone=zone,
        algorithm=algorithm,
    )
    spec = specs.checked(asked, private=True)
    job = UpdateJob(name=spec.name, type=kind, address=spec.address, ttl=ttl, zone=spec.zone)
    rights = EgressRights(origins=(egress.origin(f"dns://127.0.0.1:{port}"),))
    try:
        return await Rfc2136Provider(Guard()).publish(
            job, spec, VALUES.get(key, "") if value is None else value, rights
        )
    except ProviderRefused as refused:
        said = refused.fault
    assert not [value for value in VALUES.values() if value in str(said)]
    return said


# Real servers.


async def test_written_record_is_resolved_by_another_client(server):
    """It is created, changed and left unchanged, with address and TTL."""
    name = next(names)
    assert await publish(server.port, name) == Published(address=A, changed=True)
    assert server.addresses(name) == [(A, specs.AUTOMATIC_S)]
    assert await publish(server.port, name) == Published(address=A, changed=False)
    assert await publish(server.port, name, B, ttl=120) == Published(address=B, changed=True)
    assert server.addresses(name) == [(B, 120)]
    assert await publish(server.port, name, B, ttl=121) == Published(address=B, changed=True)


async def test_a_and_aaaa_records_of_one_name_are_independent(server):
    """The zone is found, or given."""
    name = next(names)
    assert (await publish(server.port, name, zone=ZONE)).changed
    assert (await publish(server.port, name, "2606:4700::1", kind="AAAA")).changed
    assert (await publish(server.port, name, B, zone=ZONE)).changed
    assert server.addresses(name) == [(B, 300)]
    assert server.addresses(name, "AAAA") == [("2606:4700::1", 300)]


async def test_name_matched_by_wildcard_gets_its_own_record(server):
    """The answer comes from the wildcard, which stays as it is."""
    assert (await publish(server.port, f"one.wild.{ZONE}")).changed
    assert server.addresses(f"one.wild.{ZONE}") == [(A, 300)]
    assert server.addresses(f"two.wild.{ZONE}") == [("198.51.100.9", 300)]


async def test_name_matched_by_wildcard_of_several_addresses_or_an_alias_gets_its_own_record(server):
    """What the wildcard has is no record of the name, so nothing has to be deleted for it."""
    assert await publish(server.port, f"one.many.{ZONE}") == Published(address=A, changed=True)
    assert server.addresses(f"one.many.{ZONE}") == [(A, 300)]
    assert server.addresses(f"two.many.{ZONE}") == [("198.51.100.7", 300), ("198.51.100.8", 300)]
    assert await publish(server.port, f"one.aliases.{ZONE}") == Published(address=A, changed=True)
    assert server.addresses(f"one.aliases.{ZONE}") == [(A, 300)]
    assert await publish(server.port, f"one.aliases.{ZONE}", B) == Published(address=B, changed=True)
    for deeper in ("a.two", "a.b.c"):
        assert await publish(server.port, f"{deeper}.aliases.{ZONE}") == Published(address=A, changed=True)


async def test_name_with_several_records_or_an_alias_is_denied_and_unchanged(server):
    """They may be somebody else's."""
    found = await publish(server.port, f"several.{ZONE}")
    assert (found.code, found.lasting) == ("several_records", True)
    assert server.addresses(f"several.{ZONE}") == [("198.51.100.1", 300), ("198.51.100.2", 300)]
    for name in (f"alias.{ZONE}", f"away.{ZONE}"):
        found = await publish(server.port, name)
        assert (found.code, found.lasting) == ("is_alias", True)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"value": VALUES[OTHER_KEY]}, "bad_credentials"),
        ({"key": "nobodys-key", "value": VALUES[KEY]}, "bad_credentials"),
        ({"algorithm": "hmac-sha512"}, "bad_credentials"),
        ({"value": "not base64!"}, "bad_key"),
        ({"value": ""}, "bad_key"),
        ({"name": "host.example.net"}, "refused"),
        ({"name": f"a.b.{ZONE}", "zone": f"b.{ZONE}"}, "not_authoritative"),
    ],
)
async def test_each_refusal_of_the_server_has_its_code_and_is_a_denial_if_signed(server, fields, code):
    """It is for a wrong key value, an unknown key or another zone, which Knot does not sign; nothing is written."""
    name = next(names)
    found = await publish(server.port, **{"name": name, **fields})
    assert isinstance(found, UpdateFailed)
    lasting = code == "bad_key" or (server.kind == "bind" and code != "bad_credentials")
    assert (found.code, found.lasting) == (code, lasting)
    assert server.addresses(name) == []


async def test_tsig_key_without_write_access_is_refused(server):
    """BIND refuses the update, which it signs, Knot the key."""
    found = await publish(server.port, next(names), key=OTHER_KEY)
    expected = {"bind": ("refused", True), "knot": ("bad_credentials", False)}
    assert (found.code, found.lasting) == expected[server.kind]


async def test_servfail_is_transient(server):
    """SERVFAIL: a zone whose primary cannot be reached."""
    found = await publish(server.port, f"h.{FAILING}", zone=FAILING)
    assert (found.code, found.lasting) == ("server_failed", False)


async def test_dns_server_that_is_not_bound_is_blocked(server):
    """Scheme and port are part of what was bound."""
    spec = specs.checked(
        specs.DdnsPut(
            name=f"h.{ZONE}",
            type="A",
            provider="rfc2136",
            secret="${secret:K}",
            address=A,
            server=f"127.0.0.1:{server.port}",
            key=KEY,
        ),
        private=False,
    )
    job = UpdateJob(name=spec.name, type="A", address=A, ttl=1)
    for origin in (f"tcp://127.0.0.1:{server.port}", "dns://127.0.0.1:1"):
        rights = EgressRights(origins=(egress.origin(origin),), hosts=("*",))
        with pytest.raises(HostError, match=r"address not public: 127\.0\.0\.1 has one that is loopback"):
            await Rfc2136Provider(Guard()).publish(job, spec, VALUES[KEY], rights)


# A scripted server.


@contextlib.asynccontextmanager
async def scripted(*replies):
    """A server that answers each question with the next of `replies`: bytes, or a function of question and key to a
    message.
    """
    left, key = list(replies), dns.tsig.Key(KEY, VALUES[KEY])

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                question = dns.message.from_wire(wire, keyring=key)
                found = left.pop(0)
                found = found if isinstance(found, bytes) else found(question, key)
                writer.write(len(found).to_bytes(2, "big") + found)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def reply(*, rcode="NOERROR", flags=dns.flags.AA, signed=True, key=None, other_id=False):
    def made(question, its_key):
        answer = dns.message.make_response(question)
        answer.flags |= flags
        answer.set_rcode(dns.rcode.from_text(rcode))
        if other_id:
            answer.id ^= 1
        if not signed:
            answer.tsig, answer.want_tsig_sign = None, False
        elif key is not None:
            answer.use_tsig(key)
        else:
            answer.use_tsig(its_key)
        answer.request_mac = question.mac
        return answer.to_wire()

    return made


def tsig_error(error):
    """The answer of a server that does not accept the question's key, signature or time (RFC 8945, section 5.2)."""

    def made(question, key):
        answer = dns.message.make_response(question)
        answer.set_rcode(dns.rcode.NOTAUTH)
        time_of_server = b"\0\0\0\0\0\1" if error == dns.rcode.BADTIME else b""
        answer.use_tsig(WRONG, tsig_error=error, other_data=time_of_server)
        answer.request_mac = question.mac
        return answer.to_wire()

    return made


WRONG = dns.tsig.Key(KEY, base64.b64encode(b"w" * 32).decode())


@pytest.mark.parametrize(
    ("replies", "code", "lasting"),
    [
        ([reply(rcode="SERVFAIL")], "server_failed", False),
        ([reply(rcode="REFUSED")], "refused", True),
        ([reply(rcode="NOTAUTH")], "not_authoritative", True),
        ([reply(rcode="NOTIMP")], "not_understood", True),
        ([reply(rcode="BADVERS")], "bad_answer", False),
        ([reply(rcode="REFUSED", signed=False)], "refused", False),
        ([reply(rcode="NOTAUTH", signed=False)], "not_authoritative", False),
        ([tsig_error(dns.rcode.BADKEY)], "bad_credentials", False),
        ([tsig_error(dns.rcode.BADSIG)], "bad_credentials", False),
        ([reply(rcode="SERVFAIL", signed=False)], "server_failed", False),
        ([reply(signed=False)], "not_signed", False),
        ([reply(key=WRONG)], "bad_signature", False),
        ([tsig_error(dns.rcode.BADTIME)], "clock_differs", False),
        ([reply(flags=0)], "not_authoritative", True),
        ([reply(other_id=True)], "bad_answer", False),
        ([b"\0"], "bad_answer", False),
        ([b"\xff" * 40], "bad_answer", False),
        ([], "no_answer", False),
        ([reply(), reply()], "no_zone", True),
    ],
)
async def test_each_bad_answer_to_the_query_gives_its_code(replies, code, lasting):
    """An unsigned answer never means success, nor a denial; only what a retry cannot change is lasting."""
    async with scripted(*replies) as port:
        found = await publish(port, f"h.{ZONE}")
    assert isinstance(found, UpdateFailed)
    assert (found.code, found.lasting) == (code, lasting)


@pytest.mark.parametrize(
    ("rcode", "code", "lasting"),
    [
        ("NOERROR", "not_written", False),
        ("REFUSED", "refused", True),
        ("NOTAUTH", "not_authoritative", True),
        ("NOTZONE", "not_authoritative", True),
        ("SERVFAIL", "server_failed", False),
        ("YXRRSET", "provider_conflict", False),
        ("FORMERR", "not_understood", True),
    ],
)
async def test_each_answer_to_the_update_gives_its_code(rcode, code, lasting):
    """An accepted update is published only once the record can be read back."""
    async with scripted(reply(), reply(rcode=rcode), reply()) as port:
        found = await publish(port, f"h.{ZONE}", zone=ZONE)
    assert (found.code, found.lasting) == (code, lasting)


async def test_silent_dns_server_times_out(monkeypatch):
    """It does so after EXCHANGE_S; the connection is closed."""
    monkeypatch.setattr("latticed.host.ddns.dns_exchange.EXCHANGE_S", 0.05)
    hung = asyncio.Event()

    async def serve(reader, writer):
        assert await reader.read(2) != b""
        while await reader.read(4_096):
            pass
        hung.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        found = await publish(server.sockets[0].getsockname()[1], f"h.{ZONE}")
        assert (found.code, found.lasting) == ("no_answer", False)
        async with asyncio.timeout(processes.PATIENCE_S):
            await hung.wait()
