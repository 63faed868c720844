"""The notification fan-out end to end: a real daemon, a plugin that sends, services that take only what is right."""

from __future__ import annotations

import pytest

from tests.house import consoles, fanouts, push_services

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def fanout():
    with fanouts.running() as found:
        yield found


def test_notification_reaches_a_channel_of_each_kind(fanout):
    (item,) = fanout.send({"title": "disk full", "body": "/var: 99 %", "severity": "error", "event": "disk.full"})
    (row,) = fanout.ended(item)
    assert {one["channel"]: (one["state"], one["reason"]) for one in row["channels"]} == dict.fromkeys(
        fanout.services.channels(), ("done", "")
    )
    seen = {one.service: (one.title, one.body) for one in fanout.services.taken if one.body.startswith("/var")}
    assert seen == {
        name: ("[error] disk full" if name in {"telegram", "slack", "gotify"} else "disk full", "/var: 99 %")
        for name in fanout.services.channels()
    }


def test_id_goes_along_where_the_service_takes_one(fanout):
    (item,) = fanout.send({"title": "with an id", "event": "ids"})
    fanout.ended(item)
    found = {one.service: one.id for one in fanout.services.taken if "with an id" in one.title}
    assert {name for name, given in found.items() if given == item} == {"ntfy", "bark", "webhook"}


NASTY = "<b>&amp; <!channel> @everyone *x* _y_ `z` ${secret:SLACK} {{body}}\r\nBcc: a\x1b[31m\u202e"


def test_hostile_texts_arrive_as_text_at_every_service(fanout):
    """Eight KiB of markup, line ends and escapes in every field: no service refuses it, and no secret goes along."""
    long = NASTY * (8_192 // len(NASTY) + 1)
    (item,) = fanout.send({"title": long, "body": long, "severity": "critical", "event": "hostile"})
    (row,) = fanout.ended(item)
    assert {one["channel"]: (one["state"], one["reason"]) for one in row["channels"]} == dict.fromkeys(
        fanout.services.channels(), ("done", "")
    )
    taken = [one for one in fanout.services.taken if "<!channel>" in one.title]
    assert {one.service for one in taken} == set(fanout.services.channels())
    for one in taken:
        assert "\n" not in one.title
        assert not {"\x1b", "\u202e", "\r"} & set(one.title + one.body)
        assert "${secret:SLACK}" in one.body
        assert not [value for value in push_services.SECRETS.values() if value in str(one.plain)]


def test_flood_of_a_sender_is_a_bounded_number_of_messages(fanout):
    """Whatever its events are called: a burst of the channel's rate, then what waits goes together; none is lost."""
    hook = fanout.services.channels()["webhook"] | {"per_minute": 60}
    assert fanout.configure(channels={"hook": hook}, default=["hook"]).returncode == 0
    fanout.daemon.until_state("armed", fanouts.ID)
    before = len(fanout.services.of("webhook"))
    items = fanout.send(*({"title": f"flood {n}", "event": f"flood{n}"} for n in range(300)))
    fanout.daemon.until(lambda: fanout.channel("hook").get("waiting") == 0, "the channel to have all")
    told = fanout.services.of("webhook")[before:]
    assert sorted(row["id"] for one in told for row in one.plain["data"]["items"]) == sorted(items)
    assert len(told) < 150


def test_tokens_are_in_no_list_log_audit_or_error(fanout):
    fanout.test("telegram")
    fanout.configure(
        channels={
            **fanout.services.channels(),
            "wrong": {"kind": "gotify", "token": "${secret:SLACK}", "server": fanout.services.origin},
        },
        default=["wrong"],
    )
    fanout.daemon.until_state("armed", fanouts.ID)
    assert fanout.test("wrong")["outcome"] == "fail"
    texts = [
        fanout.daemon.get("/api/notifications").body.decode(),
        fanout.daemon.get("/api/audit?limit=1000").body.decode(),
        fanout.daemon.log_file.read_text(),
        fanout.daemon.ctl("info", fanouts.ID).stdout,
    ]
    for value in push_services.SECRETS.values():
        assert not [text for text in texts if value in text]


def test_failed_notification_is_sent_again_by_the_consoles_page(fanout):
    """Once what the channel was refused for is mended."""
    right = fanout.services.channels()["gotify"]
    assert fanout.configure(channels={"hook": {**right, "token": "${secret:SLACK}"}}, default=["hook"]).returncode == 0
    fanout.daemon.until_state("armed", fanouts.ID)
    (item,) = fanout.send({"title": "once more", "event": "again"})
    assert fanout.ended(item)[0]["status"] == "failed"
    with consoles.running(fanout.daemon, "--act") as console:
        console.enter()
        page = console.get("/notifications").text
        assert f'action="{console.base}/notifications/{item}"' in page
        assert "last sent" in page
        assert fanout.configure(channels={"hook": right}, default=["hook"]).returncode == 0
        fanout.daemon.until_state("armed", fanouts.ID)
        console.post(f"/notifications/{item}")
        assert "queued again" in console.get("/notifications").text
    assert fanout.ended(item)[0]["status"] == "done"
