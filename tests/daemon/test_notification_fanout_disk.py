"""The fan-out on a disk that takes nothing: what was sent is sent once, what could not be is sent later."""

from __future__ import annotations

import errno

import pytest

from tests.house import fanouts, faults, push_services

pytestmark = pytest.mark.daemon


@pytest.mark.parametrize("error", faults.DISK_ERRORS, ids=errno.errorcode.get)
def test_message_whose_outcome_cannot_be_recorded_is_not_sent_again(place, acme, sick, error):
    """The disk fails while the other side has the message and has not answered yet."""
    place.builtins = ("latticed", "")
    with push_services.serving() as services, place.running() as daemon:
        channels = {"hook": services.channels()["webhook"]}
        fanout = fanouts.prepare(place, daemon, services, acme, channels=channels, default=["hook"], window_s=0)
        failing = []

        def fail(_service, _handler):
            if not failing:
                failing.append(sick.failing(error, faults.WRITES, below=place.state / "ledger.sqlite3"))
                failing[0].__enter__()

        services.instead = fail
        (item,) = fanout.send({"title": "once", "event": "disk"})
        daemon.until(lambda: daemon.log("notification_unrecorded"), "the daemon to say that it cannot record it")
        assert fanout.row(item)["status"] == "delivering"
        failing[0].__exit__(None, None, None)
        assert fanout.ended(item)[0]["status"] == "done"
        assert [one.id for one in services.of("webhook") if one.title == "once"] == [item]
        (later,) = fanout.send({"title": "afterwards", "event": "disk"})
        assert fanout.ended(later)[0]["status"] == "done"
        faults.chain_holds(daemon)
