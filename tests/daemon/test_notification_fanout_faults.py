"""Services that misbehave, and what operators see of it: one real daemon, configured anew by each test."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest

from tests.house import fanouts, relays_thread

pytestmark = pytest.mark.daemon

SETTINGS = "[notify]\nbackoff_base_s = 0.2\nbackoff_ceiling_s = 0.5\n"


@pytest.fixture(scope="module")
def fanout():
    with relays_thread.relaying() as relay:
        mail = f'[mail]\nrelay = "smtp://127.0.0.1:{relay.port}"\nstarttls = false\nsender = "latticed@example.org"\n'
        with fanouts.running(SETTINGS + mail) as found:
            found.relay = relay
            yield found


@pytest.fixture(autouse=True)
def calm(fanout):
    """No service misbehaves unless the test says so."""
    yield
    fanout.services.instead = lambda _service, _handler: None


def use(fanout, *names, default=(), **more):
    """Have only these channels; all are the default ones unless `default` says otherwise."""
    every = {**fanout.services.channels(), "mail": {"kind": "mail", "to": ["ops@example.org"]}}
    wanted = {"channels": {name: every[name] for name in names}, "default": list(default or names), **more}
    answer = fanout.configure(**wanted)
    assert answer.returncode == 0, answer
    fanout.daemon.until_state("armed", fanouts.ID)


def slow(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "outcome", "code"),
    [
        ((429, {}, b""), "retry", "http_429"),
        ((429, {"Retry-After": "86400"}, b""), "retry", "http_429"),
        ((429, {"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, b""), "retry", "http_429"),
        ((200, {}, b'{"ok": false}'), "retry", "unexpected_answer"),
        ((200, {}, b"x" * (10 << 20)), "retry", "too_large"),
        ((302, {"Location": "http://169.254.169.254/latest"}, b""), "fail", "egress_blocked"),
        ((307, {"Location": "http://10.0.0.1/"}, b""), "fail", "egress_blocked"),
        ((500, {}, b"\x1b[31mred"), "retry", "http_500"),
        ((403, {}, b"no"), "fail", "http_403"),
    ],
    ids=[
        "429",
        "429 for a day",
        "429 for ever",
        "error in 200",
        "10 MiB",
        "302 to metadata",
        "307 to private",
        "escapes",
        "403",
    ],
)
def test_answer_that_is_no_success_is_said_by_notify_test(fanout, answer, outcome, code):
    use(fanout, "gotify")
    fanout.services.instead = lambda _service, _handler: answer
    ran = fanout.daemon.ctl("notify", "test", "gotify")
    assert ran.returncode == 1, ran
    found = dict(re.findall(r"^(\w+) +(.*)$", ran.stdout, re.MULTILINE))
    assert (found["outcome"], found["code"]) == (outcome, code)
    assert "\x1b" not in ran.stdout


def test_message_that_a_redirect_drops_is_kept_and_its_channel_degraded(fanout):
    """The page behind the redirect answers 200 to a GET without the message."""
    use(fanout, "webhook")

    def moved(_service, handler):
        if handler.command == "GET":
            return 200, {}, b"<html>welcome</html>"
        return 302, {"Location": "/hook/"}, b""

    fanout.services.instead = moved
    (item,) = fanout.send({"title": "disk full", "body": "/var", "event": "redirect.test", "severity": "critical"})
    (row,) = fanout.ended(item)
    assert (row["status"], row["code"]) == ("failed", "redirected")
    shown = fanout.daemon.ctl("notify", "list").stdout
    assert re.search(r"webhook +degraded", shown)
    assert f"leads to {fanout.services.origin}/hook/" in fanout.channel("webhook")["reason"]
    fanout.services.instead = lambda _service, _handler: None
    assert fanout.test("webhook")["outcome"] == "done"
    assert fanout.daemon.ctl("notify", "retry", item).returncode == 0
    assert fanout.ended(item)[0]["status"] == "done"
    taken = [one for one in fanout.services.of("webhook") if one.id == item]
    assert [(one.title, one.body) for one in taken] == [("disk full", "/var")]


def test_answer_of_a_byte_at_a_time_ends_with_the_deadline(fanout):
    use(fanout, "gotify")

    def drip(_service, handler):
        try:
            slow(handler)
        except OSError:
            return 200, {}, b""  # the daemon has cut it
        return 200, {}, b""

    fanout.services.instead = drip
    assert fanout.test("gotify")["code"] == "deadline_exceeded"


def test_notify_test_says_what_the_other_side_answered(fanout):
    use(fanout, "telegram")
    ran = fanout.daemon.ctl("notify", "test", "telegram")
    assert ran.returncode == 0, ran
    assert '200 {"ok": true' in ran.stdout
    assert fanout.daemon.ctl("notify", "test", "pager").returncode == 1
    assert fanout.daemon.events(action="notify.test")[-1]["target"] == "pager"


def test_what_fails_for_now_is_tried_again_and_arrives_once(fanout):
    use(fanout, "ntfy")
    answers = [(503, {}, b""), (429, {}, b""), (200, {}, b"<html>")]
    fanout.services.instead = lambda _service, _handler: answers.pop() if answers else None
    (item,) = fanout.send({"title": "in the end", "event": "later"})
    (row,) = fanout.ended(item)
    assert (row["status"], [one["attempts"] for one in row["channels"]]) == ("done", [4])
    assert [one.title for one in fanout.services.of("ntfy") if one.id == item] == ["in the end"]


def test_degraded_channel_is_told_through_another_and_shown_everywhere(fanout):
    use(fanout, "slack", "ntfy", default=["slack"])
    fanout.services.instead = lambda service, _handler: (403, {}, b"action_prohibited") if service == "slack" else None
    (item,) = fanout.send({"title": "refused", "event": "degraded.test"})
    (row,) = fanout.ended(item)
    assert (row["status"], row["code"]) == ("failed", "http_403")
    fanout.daemon.until(
        lambda: any("channel slack is degraded: http_403" in one.title for one in fanout.services.of("ntfy")),
        "the other channel to tell",
    )
    daemon = fanout.daemon
    assert fanout.channel("slack")["state"] == "degraded"
    assert re.search(r"slack +degraded", daemon.ctl("notify", "list").stdout)
    daemon.until(lambda: "channel slack" in daemon.ctl("info", fanouts.ID).stdout, "info to say so")
    assert "channel_degraded" in daemon.ctl("health").stdout
    metrics = daemon.get("/metrics").body.decode()
    assert 'latticed_notify_degraded{channel="slack"} 1' in metrics
    assert re.search(r'latticed_notify_last_success_seconds\{channel="ntfy"\} \d{9}', metrics)
    fanout.services.instead = lambda _service, _handler: None
    assert fanout.test("slack")["outcome"] == "done"
    assert fanout.channel("slack")["state"] == "ok"
    daemon.until(lambda: "channel slack" not in daemon.ctl("info", fanouts.ID).stdout, "info to forget it")
    assert daemon.ctl("notify", "retry", item).returncode == 0
    assert fanout.ended(item)[0]["status"] == "done"


def test_channel_that_is_told_to_wait_a_day_shows_the_age_of_what_waits_and_loses_nothing(fanout):
    use(fanout, "gotify")
    daemon = fanout.daemon
    fanout.services.instead = lambda _service, _handler: (429, {"Retry-After": "86400"}, b"")
    items = fanout.send({"title": "first", "event": "waits.1"}, {"title": "second", "event": "waits.2"})
    oldest = re.compile(r'^latticed_notify_oldest_seconds\{channel="gotify"\} [1-9]', re.MULTILINE)
    daemon.until(lambda: oldest.search(daemon.get("/metrics").body.decode()), "the age of the oldest")
    assert fanout.channel("gotify")["state"] == "degraded"
    fanout.services.instead = lambda _service, _handler: None
    assert fanout.test("gotify")["outcome"] == "done"
    assert {row["status"] for row in fanout.ended(*items)} == {"done"}
    assert 'latticed_notify_oldest_seconds{channel="gotify"} 0\n' in daemon.get("/metrics").body.decode()


def test_storm_of_one_event_is_one_message_with_a_count(fanout):
    use(fanout, "webhook", window_s=1)
    before = len(fanout.services.of("webhook"))
    items = fanout.send(*({"title": "disk full", "event": "storm"} for _ in range(40)))
    rows = fanout.ended(*items)
    assert {row["status"] for row in rows} == {"done"}
    told = fanout.services.of("webhook")[before:]
    assert sorted(row["id"] for one in told for row in one.plain["data"]["items"]) == sorted(items)
    assert len(told) <= 3
    assert "(×" in told[-1].title


def test_mail_goes_by_the_operators_relay_with_one_line_of_subject(fanout):
    use(fanout, "mail")
    title = "a\r\nBcc: all@example.org ${secret:SLACK}"
    (item,) = fanout.send(
        {"title": title, "body": "line 1\nline 2 ${secret:SLACK}", "severity": "warning", "event": "m"}
    )
    assert fanout.ended(item)[0]["status"] == "done"
    sent = fanout.relay.taken[-1]
    assert sent.to == ["ops@example.org"]
    assert sent.message["Subject"] == "[warning] a\\x0d\\x0aBcc: all@example.org $ {secret:SLACK}"
    assert sent.message["Bcc"] is None
    assert sent.text.strip() == "line 1\nline 2 $ {secret:SLACK}"


def test_items_wait_while_the_plugin_is_not_active_and_health_says_so(fanout):
    use(fanout, "ntfy")
    daemon = fanout.daemon
    assert daemon.ctl("disable", fanouts.ID).returncode == 0
    (item,) = fanout.send({"title": "patient", "event": "waits"})
    assert fanout.row(item)["status"] == "queued"
    notes = {one["code"]: one["detail"] for one in daemon.get("/api/health").json()["notes"]}
    assert "latticectl explain latticed.notify" in notes["notifications_wait"]
    assert daemon.ctl("activate", fanouts.ID).returncode == 0
    assert fanout.ended(item)[0]["status"] == "done"


def test_latticed_tells_of_a_plugin_that_fails(fanout):
    use(fanout, "ntfy")
    broken = b"#!/usr/bin/env python3\nraise SystemExit(3)\n"
    fanout.place.drop("acme.broken", author=fanout.author, id="acme.broken", artifact=broken, v2=True)
    daemon = fanout.daemon
    daemon.until(lambda: daemon.plugin("acme.broken"), "the bundle to be seen")
    daemon.set_status("installed", "acme.broken")
    daemon.set_status("active", "acme.broken")
    daemon.until(
        lambda: any(one.title.startswith("acme.broken failed") for one in fanout.services.of("ntfy")), "it to be told"
    )
    daemon.set_status("disabled", "acme.broken")


def test_notify_settings_take_effect_at_a_reload(fanout):
    """With room for one item of a plugin, the second one is refused; with room again, it is taken."""
    use(fanout, "ntfy")
    daemon, config, text = fanout.daemon, fanout.place.config, fanout.place.config.read_text()

    def reload(wanted):
        seen = len(daemon.log("settings_loaded"))
        fanout.place.write(config, wanted.encode())
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: len(daemon.log("settings_loaded")) > seen, "the settings")

    assert daemon.ctl("disable", fanouts.ID).returncode == 0
    try:
        reload(text.replace("[notify]", "[notify]\nplugin_items = 1"))
        (first,) = fanout.send({"title": "first", "event": "reload.1"})
        body = {"action": "send", "payload": [{"title": "second", "event": "reload.2"}]}
        refused = daemon.post(f"/api/plugins/by-id/{fanouts.SENDER}/invoke", body).json()
        assert (refused["ok"], "quota_exceeded" in json.dumps(refused)) == (False, True), refused
    finally:
        reload(text)
    (second,) = fanout.send({"title": "second", "event": "reload.2"})
    assert daemon.ctl("activate", fanouts.ID).returncode == 0
    assert {row["status"] for row in fanout.ended(first, second)} == {"done"}


def test_configuration_that_names_what_is_not_there_is_said_by_config_set(fanout):
    answer = fanout.configure(channels={"a": fanout.services.channels()["ntfy"]}, default=["b"])
    assert answer.returncode == 1
    assert "default: expected one of the channels a" in answer.stderr + answer.stdout
    use(fanout, "ntfy")


def test_hundred_idle_channels_cost_no_processor_time(fanout):
    """Beyond what a daemon without them costs: counted in its own time, not in the test's."""
    ntfy = fanout.services.channels()["ntfy"]

    stat = Path(f"/proc/{fanout.daemon.process.pid}/stat")

    def ticks():
        """Its user and system time so far (proc_pid_stat(5), fields 14 and 15)."""
        return sum(map(int, stat.read_text().rpartition(") ")[2].split()[11:13]))

    def cost():
        before = ticks()
        time.sleep(5)  # the span that is measured
        return ticks() - before

    use(fanout, "ntfy")
    one = cost()
    channels = {f"n{number}": ntfy for number in range(100)}
    assert fanout.configure(channels=channels, default=sorted(channels), window_s=0).returncode == 0
    fanout.daemon.until_state("armed", fanouts.ID)
    (item,) = fanout.send({"title": "to all", "event": "hundred"})
    row = fanout.ended(item)[0]
    assert [channel["state"] for channel in row["channels"]] == ["done"] * 100
    many = cost()
    assert many <= one + 5, json.dumps({"one": one, "many": many})
