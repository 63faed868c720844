"""Plans of nginx at the real root helper: approval, confirmation, deadline, kills, a change that cannot be made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
from collections.abc import Iterator

import pytest
import trustme

from latticed.plans import protocol
from tests.house import apply_helpers, faults, long, nginx_places, nginxes, ports, processes

pytestmark = pytest.mark.root


@pytest.fixture
def place() -> Iterator[nginx_places.WebPlace]:
    with nginx_places.web_place() as found:
        yield found


def shop(status):
    return nginxes.site(answer=status)


def until(holds, what):
    processes.until(holds, what=what, deadline_s=30.0)


def begun(place, intent) -> str:
    """A plan that is applied and waits for its confirmation."""
    plan = place.approved(intent, kind="nginx")
    answer = place.ask(protocol.Apply(plan=plan))
    assert answer.state == "unconfirmed", answer
    return plan


def test_an_approved_and_confirmed_plan_serves_its_sites(place):
    with place.running():
        plan = place.applied(place.document(shop(410)), kind="nginx")
        assert place.state_of(plan) == "applied"
        assert place.get() == 410


def test_an_unconfirmed_change_is_undone_and_the_old_site_answers(place):
    place.settings["confirm_within_s"] = 6
    with place.running():
        place.applied(place.document(shop(410)), kind="nginx")
        plan = begun(place, place.document(shop(404)))
        until(lambda: place.get() == 410, "the site of before")
        until(lambda: place.state_of(plan) == "rolled_back", "the change undone")


def test_an_nginx_that_cannot_be_started_again_is_drift_until_it_can(place):
    """Under `restore`; another program has taken its port meanwhile."""
    place.settings["restore"] = ["nginx"]
    with place.running():
        place.applied(place.document(shop(410)), kind="nginx")
        with socket.socket() as other:
            until(lambda: taken(other, place), "the port to be free")
            told = (True, "drift that could not be put back: tool_failed")
            until(lambda: target_of(place) == told, "the failure")
        until(lambda: target_of(place) == (False, ""), "the end of it")
        assert place.get() == 410


def taken(sock, place):
    """Whether nginx is ended, and the socket has its port, before the helper starts it again."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((place.web / "nginx.pid").read_text()), signal.SIGTERM)
    with contextlib.suppress(OSError):
        sock.bind(("127.0.0.1", place.ports[0]))
        sock.listen()
        return True
    return False


def target_of(place):
    (found,) = place.observed().targets
    return found.drifted, found.problem


@pytest.mark.parametrize("first", [True, False])
def test_a_killed_helper_s_change_is_undone(place, first):
    """Also the first one, after which there is no nginx."""
    place.settings["confirm_within_s"] = 8
    with place.running() as helper:
        if not first:
            place.applied(place.document(shop(410)), kind="nginx")
        begun(place, place.document(shop(404)))
        until(lambda: place.get() == 404, "the new site")  # a worker of before may answer once more
        helper.kill()
        helper.wait()
        until(lambda: place.get() == (0 if first else 410), "what was before")


def test_a_bad_bind_rolls_back_and_the_old_site_answers_200(place):
    with place.running(), nginxes.backend("app") as app:
        site = nginxes.site(upstream={"scheme": "http", "host": "127.0.0.1", "port": app.port})
        place.applied(place.document(site), kind="nginx")
        assert place.get() == 200
        # Approved while the port was free: the review depends on what is ours alone.
        intent = place.document(shop(404))
        intent["listen"]["http"] = ports.free()
        plan = place.approved(intent, kind="nginx")
        with nginxes.taken(intent["listen"]["http"]):
            answer = place.ask(protocol.Apply(plan=plan))
            assert answer.code in {"apply_failed", "intent_refused"}, answer
            assert place.get() == 200


def test_a_kill_at_any_moment_of_an_apply_ends_in_the_old_sites(place):
    """Of the helper, its dead-man, both, or nginx itself; where both are gone, the next start puts them back."""
    rng = random.Random(14)
    with place.running():
        place.applied(place.document(shop(410)), kind="nginx")
    for turn in range(long.times(4, 60)):
        victims = ("helper", "dead-man", "both", "nginx")[turn % 4]
        with place.running() as helper:
            bad = place.document() if turn % 3 == 1 else place.document(shop(404), nginxes.site(f"s{turn}", answer=403))
            plan = place.approved(bad, kind="nginx")
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(place.settings["socket"])
                sock.sendall(protocol.encode(protocol.Apply(plan=plan, confirm_within_s=8)))
                apply_helpers.pause(rng.uniform(0, 2))
                if victims in {"dead-man", "both"}:
                    for pid in place.dead_men():
                        os.kill(pid, signal.SIGKILL)
                if victims in {"helper", "both"}:
                    helper.kill()
                    helper.wait()
                if victims == "nginx" and (place.web / "nginx.pid").exists():
                    os.kill(int((place.web / "nginx.pid").read_text()), signal.SIGKILL)
                is_up = victims in {"dead-man", "nginx"} and apply_helpers.is_answered(sock, helper)
                if is_up:
                    until(lambda: place.get() == 410, f"the old site ({victims})")
                    until(lambda: not place.observed().targets[0].unconfirmed, "the record")
        if not is_up:
            with place.running():
                until(lambda: place.get() == 410, f"the old site ({victims})")
                until(lambda: not place.observed().targets[0].unconfirmed, "the record")
        assert place.get(f"s{turn}.example.org") == 0


def test_a_full_disk_refuses_a_change_and_does_not_keep_one_from_being_undone(place):
    place.settings["confirm_within_s"] = 8
    place.web.mkdir()
    with faults.small_disk(place.web, kib=512, uid=0), place.running():
        place.applied(place.document(shop(410)), kind="nginx")
        plan = place.approved(place.document(shop(404)), kind="nginx")
        faults.fill(place.web / "filler")
        answer = place.ask(protocol.Apply(plan=plan))
        assert answer.code in {"state_unusable", "apply_failed", "tool_failed"}, answer
        assert place.get() == 410
        (place.web / "filler").unlink()
        begun(place, place.document(shop(404)))
        until(lambda: place.get() == 404, "the new site")
        faults.fill(place.web / "filler")
        until(lambda: place.get() == 410, "the site of before")
        until(lambda: place.state_of(plan) == "rolled_back", "the record")
        nginx_places.ended(place)


def test_a_boot_serves_20_sites_of_which_12_cannot_be_under_the_unit_s_umask(place):
    """5 upstreams have no name, 5 do not listen, 2 certificates are gone; one site's files are a plugin's."""
    place.before = ("sh", "-c", 'umask 077 && exec "$@"', "sh")
    place.static = place.home / "static"
    page = place.static / "acme/acme.site/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("hello")
    closed = ports.free()
    sites = [nginxes.site(f"s{index}", answer=410) for index in range(19)]
    for index in range(10):
        host, port = (f"gone-{index}.lan", 80) if index < 5 else ("127.0.0.1", closed)
        sites[index] = nginxes.site(f"s{index}", upstream={"scheme": "http", "host": host, "port": port})
    for index in (10, 11):
        sites[index]["tls"] = nginxes.tls(f"s{index}", str(place.live_certificates))
    digest = hashlib.sha256(b"hello").hexdigest()
    document = place.document(
        *sites,
        nginxes.site("files", publish="acme.site"),
        resolvers=["127.0.0.1"],
        published=[nginxes.published(**{"index.html": digest})],
    )

    def served():
        return [place.get(f"s{index}.example.org") for index in (0, *range(5, 19))] + [place.get("files.example.org")]

    with place.running():
        place.applied(document, kind="nginx")
        assert served() == [*[503] * 8, *[410] * 7, 200]
    page.write_text("another")
    os.kill(int((place.web / "nginx.pid").read_text()), signal.SIGKILL)
    with place.running("--boot"):
        assert served() == [*[503] * 8, *[410] * 7, 200]
        assert nginxes.get(place.ports[0], "files.example.org")[2] == b"hello"


def test_switching_a_site_off_needs_no_approval_and_on_again_within_it_neither(place):
    with place.running():
        place.applied(place.document(shop(410), nginxes.site("wiki", answer=404)), kind="nginx")
        off = place.offer(
            place.document({**shop(410), "enabled": False}, nginxes.site("wiki", answer=404)), kind="nginx"
        )
        answer = place.ask(protocol.Apply(plan=off), user=apply_helpers.DAEMON)
        assert answer.state == "applied", answer
        assert (place.get(), place.get("wiki.example.org")) == (503, 404)
        wider = place.offer(place.document(shop(410), nginxes.site("wiki", answer=410)), kind="nginx")
        assert place.ask(protocol.Apply(plan=wider), user=apply_helpers.DAEMON).code == "not_approved"


def test_a_certificate_that_comes_later_and_one_that_is_renewed_are_taken_up_by_the_same_plan(place):
    """What the plugin asks for, as the daemon's user, without an approval."""
    site = nginxes.site(answer=410, tls=nginxes.tls(live=str(place.live_certificates), force=False))

    def seen():
        (one,) = json.loads(json.dumps(place.observed(kind="nginx").live))["sites"]
        return one["served"], one["due"]

    with place.running():
        plan = place.applied(place.document(site), kind="nginx")
        assert (place.get(), seen()) == (503, (False, False))
        serials = set()
        for served in (False, True):
            authorities = trustme.CA()
            place.issue("shop", authorities)
            # Not at once: both files have to be quiet.
            until(lambda served=served: seen() == (served, True), "the certificate to be due")
            answer = place.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON)
            assert answer.state == "applied", answer
            assert (place.get(), seen()) == (410, (True, False))
            serials.add(nginxes.presented(place.ports[1], "shop.example.org"))
        assert len(serials) == 2
