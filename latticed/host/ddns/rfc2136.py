"""Dynamic updates (RFC 2136) signed with TSIG, over TCP: read, compare, write what differs, read it back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from latticed.host.ddns import dns_exchange, outcome
from latticed.host.ddns import spec as specs
from latticed.host.ddns.outcome import Published

if TYPE_CHECKING:
    import dns.message
    import dns.name
    import dns.rrset

    from latticed.host.ddns.dns_exchange import Exchange
    from latticed.host.ddns.outcome import UpdateJob
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.host.egress.guard import Guard
    from latticed.model.egress import EgressRights

# NXDOMAIN: the name does not exist yet, and the answer has the zone's SOA all the same.
_FINE: Final = frozenset({"NOERROR", "NXDOMAIN"})


class Rfc2136Provider:
    """Publishes records by dynamic updates, at any server that the plugin may connect to (scheme `dns`, TCP only)."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def publish(self, job: UpdateJob, spec: DdnsSpec, secret: str, rights: EgressRights) -> Published:
        """Publish `job` at `spec.server`, signed with the TSIG key `spec.key`; `secret` is its value in base64.

        Raises ProviderRefused, or HostError from the egress guard: then it is not known whether the address is
        published.
        """
        signer = dns_exchange.key(spec.key, secret, spec.algorithm)
        host, port = specs.host_and_port(spec.server)
        reader, writer = await self._guard.connect(host, port, rights, scheme="dns")
        try:
            return await _publish(dns_exchange.Exchange(reader, writer, signer), job)
        finally:
            writer.close()
            # The server may have reset the connection; what counts has been read by then.
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _publish(server: Exchange, job: UpdateJob) -> Published:
    """Publish over an open connection: read, compare, update, read back."""
    import dns.rcode

    found, zone = await _read(server, job)
    if _is_equal(found, job):
        return Published(address=job.address, changed=False)
    answer = await server.ask(_update(job, zone, found))
    if found is not None and _is_kept(found) and answer.rcode() == dns.rcode.YXRRSET:
        raise _denied(job, found)
    if (
        found is not None and answer.rcode() == dns.rcode.NXRRSET
    ):  # what was read came from a wildcard, or has been deleted since
        answer = await server.ask(_update(job, zone, None))
    dns_exchange.check(answer, fine=frozenset({"NOERROR"}), about=f"the update of {job.name}")
    # NOERROR also answers an update that the server ignored, such as one of a CNAME's name (RFC 2136, section 3.4.2.2).
    written, _ = await _read(server, job)
    if not _is_equal(written, job):
        raise outcome.transient("not_written", "the server took the update, and the record is not as it was sent")
    return Published(address=job.address, changed=True)


def _update(job: UpdateJob, zone: dns.name.Name, found: dns.rrset.RRset | None) -> dns.message.Message:
    """The message that replaces what was found (None: nothing) by the job's address and TTL.

    It holds on condition that what was found is still there (RFC 2136, section 2.4): a change that was made meanwhile
    is not overwritten, and the server answers NXRRSET or YXRRSET. What is to be kept must not be there: then it came
    from a wildcard, and the name gets a record of its own.
    """
    import dns.name
    import dns.rdatatype
    import dns.update

    name, kind = dns.name.from_text(job.name), dns.rdatatype.from_text(job.type)
    update = dns.update.UpdateMessage(zone)
    if found is None:
        update.absent(name, kind)
    elif _is_kept(found):
        update.absent(name, found.rdtype)
    else:
        update.present(name, *found)
    # `replace`: the old records of that name and type go, in the same update.
    update.replace(name, _ttl_s(job), kind, job.address)
    return update


async def _read(server: Exchange, job: UpdateJob) -> tuple[dns.rrset.RRset | None, dns.name.Name]:
    """(what the server has under that name and type, the alias if it is one, or None; the zone that the name lies in).

    ProviderRefused when it has no authority, or the code is no success.
    """
    import dns.flags
    import dns.message
    import dns.name
    import dns.rdataclass
    import dns.rdatatype

    name, kind = dns.name.from_text(job.name), dns.rdatatype.from_text(job.type)
    question = dns.message.make_query(name, kind)
    # No recursion: another server's answer, or a cached one, is not what an update would change.
    question.flags &= ~dns.flags.RD
    answer = await server.ask(question)
    dns_exchange.check(answer, fine=_FINE, about=f"the question for {job.name}")
    # Without authority the answer may come from a cache, and updates would not be taken.
    if not answer.flags & dns.flags.AA:
        raise outcome.denied("not_authoritative", f"the server has no authority for {job.name}")
    alias = answer.get_rrset(answer.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
    found = alias or answer.get_rrset(answer.answer, name, dns.rdataclass.IN, kind)
    if job.zone:
        return found, dns.name.from_text(job.zone)
    return found, await _zone(server, job, name)


async def _zone(server: Exchange, job: UpdateJob, name: dns.name.Name) -> dns.name.Name:
    """The zone that a name lies in: the owner of its SOA, which comes with the answer.

    At the zone's own name it is in the answer section, otherwise in the authority section (RFC 2308, section 3). Of an
    alias, also one that a wildcard makes, the server tells the zone of its target, or none: the name above it is asked
    for then. ProviderRefused no_zone when it is in neither.
    """
    import dns.flags
    import dns.message
    import dns.rdataclass
    import dns.rdatatype

    while True:
        question = dns.message.make_query(name, dns.rdatatype.SOA)
        question.flags &= ~dns.flags.RD
        answer = await server.ask(question)
        dns_exchange.check(answer, fine=_FINE, about=f"the question for the zone of {job.name}")
        is_alias = answer.get_rrset(answer.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME) is not None
        if not is_alias or len(name) == 1:  # of the root alone
            break
        name = name.parent()
    for one in (*answer.answer, *answer.authority):
        if one.rdtype == dns.rdatatype.SOA and name.is_subdomain(one.name) and answer.flags & dns.flags.AA:
            return one.name
    raise outcome.denied("no_zone", f"expected the server to know the zone of {job.name}")


def _is_kept(found: dns.rrset.RRset) -> bool:
    """Whether no update may change it: several addresses may be there on purpose (round robin), and beside an alias
    there are none (RFC 1034, section 3.6.2).
    """
    import dns.rdatatype

    return len(found) > 1 or found.rdtype == dns.rdatatype.CNAME


def _denied(job: UpdateJob, found: dns.rrset.RRset) -> outcome.ProviderRefused:
    """The refusal to change what `_is_kept`."""
    if len(found) > 1:
        words = f"expected at most one {job.type} record of {job.name}, found {len(found)}: delete what is not wanted"
        return outcome.denied("several_records", words)
    return outcome.denied("is_alias", f"{job.name} is an alias (CNAME), which has no addresses of its own")


def _is_equal(found: dns.rrset.RRset | None, job: UpdateJob) -> bool:
    """Whether what was found is exactly the job's address, with its TTL."""
    return found is not None and [one.to_text() for one in found] == [job.address] and found.ttl == _ttl_s(job)


def _ttl_s(job: UpdateJob) -> int:
    """The TTL to send, in seconds; AUTOMATIC_S for an automatic one, which DNS itself does not have."""
    return specs.AUTOMATIC_S if job.ttl == specs.AUTOMATIC else job.ttl
