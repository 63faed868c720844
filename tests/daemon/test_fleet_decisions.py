"""Decisions of a real daemon in the chain of its node: what was asked for, done by hand, and found, each once."""

from __future__ import annotations

import itertools

import pytest

from latticed.fleet import documents, messages
from tests.house import fleet_hosts

pytestmark = pytest.mark.daemon

TOLD = ("plugin.status", "plugin.verdict", "market.imported", "plugin.grants", "ledger.recovered", "bundle.verdict")


def told(host):
    """The events that tell decisions, by the node's own numbers."""
    found = {one.number: fleet_hosts.payload_of(one) for one in host.events}
    return [found[number] for number in sorted(found) if found[number]["seq"]]


def until_told(host, condition, what):
    host.until(lambda _: condition(told(host)), what)


def recorded(host):
    """The decisions of the kinds that these tests make, as the daemon's own record has them."""
    return [one for one in host.daemon.events(limit="1000") if one["action"] in TOLD]


def check_chain(host):
    chain = {one.number: one for one in host.events}
    numbers = sorted(chain)
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    for one, two in itertools.pairwise(numbers):
        signed = documents.read(chain[one].document, documents.NodeEvent)
        assert fleet_hosts.payload_of(chain[two])["prev"] == signed.sha256


def test_decisions_reach_the_chain_once_whoever_made_them_and_whatever_is_killed():
    with fleet_hosts.hosted() as host:
        bundle = host.bundle("acme.seen")
        intent = host.intent(host.wanted(bundle))
        with host.node():
            # It tells what is decided from now on.
            host.until(lambda _: host.state()["followed"] is not None, "it to follow")
            began = host.state()["followed"]["seq"]
            desired = host.desire(intent, bundle)
            host.settled(intent)
            assert host.daemon.ctl("disable", "acme.seen").returncode == 0
            until_told(host, lambda found: any(one["reason"] or one["actor"] for one in found), "a decision")
            host.process.kill()
        # While it was away.
        assert host.daemon.ctl("activate", "acme.seen").returncode == 0
        host.daemon.stop()
        with host.daemon.place.running() as again:
            host.daemon = again
            with host.node():
                artifact = again.place.state / "bundles" / "acme.seen" / "artifact"
                artifact.write_bytes(artifact.read_bytes() + b"# tampered\n")
                again.until(lambda: [one for one in recorded(host) if one["decision"] == "deny"], "a verdict")
                wanted = [one["seq"] for one in recorded(host) if one["seq"] > began]
                host.send(messages.NewDesired(document=desired))
                until_told(host, lambda found: {one["seq"] for one in found} >= set(wanted), "all of it")
            seqs = [one["seq"] for one in told(host)]
            assert sorted(set(seqs)) == seqs
            check_chain(host)
            by_seq = {one["seq"]: one for one in told(host)}
            for one in recorded(host):
                if one["seq"] in by_seq:
                    same = by_seq[one["seq"]]
                    fields = ("action", "target", "decision", "code", "actor")
                    assert [same[name] for name in fields] == [one[name] for name in fields]
            actions = {(one["action"], one["decision"]) for one in told(host)}
            assert {("market.imported", "allow"), ("plugin.status", "allow"), ("plugin.verdict", "deny")} <= actions


def test_record_that_was_rebuilt_is_said_to_be_another():
    with fleet_hosts.hosted() as host:
        bundle = host.bundle("acme.rebuilt")
        intent = host.intent(host.wanted(bundle))
        with host.node():
            host.desire(intent, bundle)
            host.settled(intent)
            until_told(host, lambda found: [one for one in found if one["action"] == "plugin.status"], "an install")
        host.daemon.stop()
        place = host.daemon.place
        (place.state / "ledger.sqlite3").write_bytes(b"damaged" * 1_000)
        assert place.once("--recover").returncode == 0
        with place.running() as again:
            host.daemon = again
            with host.node():
                until_told(
                    host, lambda found: [one for one in found if one["action"] == "ledger.recovered"], "the new record"
                )
            gaps = [
                one for one in map(fleet_hosts.payload_of, host.events) if one["action"] == "fleet.decisions_missing"
            ]
            assert len(gaps) == 1
            check_chain(host)
