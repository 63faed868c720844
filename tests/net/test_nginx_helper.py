"""Plans of nginx at the real root helper: approval, confirmation, deadline, kills, a change that cannot be made."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme

from latticed.plans import protocol
from latticed.plans.nginx import NginxKind
from latticed.plans.programs import ProgramTools
from latticed.system.nginx.facts import NginxPlace
from tests.house import apply_helpers, nginx_kind, nginxes, processes

pytestmark = pytest.mark.root


@dataclass
class WebPlace(apply_helpers.Place):
    """A helper that applies nginx below its home, on two ports of loopback."""

    ports: list[int] = field(default_factory=lambda: nginxes.ports(2))

    def __post_init__(self) -> None:
        self.settings = {"kinds": ["nginx"], "poll_s": 1.0, **self.settings}
        super().__post_init__()
        shutil.copy(nginx_kind.__file__, self.home / "code" / "nginx_kind.py")

    @property
    def web(self) -> Path:
        return self.home / "web"

    def command(self, *options: str) -> list[str]:
        script = self.home / "code" / "nginx_kind.py"
        return [sys.executable, "-I", str(script), str(self.web), "--config", str(self.config), *options]

    def intent(self, *sites):
        listen = {"addresses": ["127.0.0.1"], "http": self.ports[0], "https": self.ports[1]}
        return nginxes.document(*sites, listen=listen)

    def get(self, host="shop.example.org") -> int:
        """The status, 0 where nothing answers."""
        with contextlib.suppress(ConnectionRefusedError):
            return nginxes.get(self.ports[0], host)[0]
        return 0


@pytest.fixture
def place() -> Iterator[WebPlace]:
    with apply_helpers.place() as made:
        found = WebPlace(home=made.home)
        kind = NginxKind(NginxPlace(directory=str(found.web)))
        try:
            yield found
        finally:
            for pid in found.dead_men():
                os.kill(pid, signal.SIGKILL)
            kind.restore(b"", ProgramTools(kind.programs))


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
        plan = place.applied(place.intent(shop(410)), kind="nginx")
        assert place.state_of(plan) == "applied"
        assert place.get() == 410


def test_an_unconfirmed_change_is_undone_and_the_old_site_answers(place):
    place.settings["confirm_within_s"] = 2
    with place.running():
        place.applied(place.intent(shop(410)), kind="nginx")
        plan = begun(place, place.intent(shop(404)))
        until(lambda: place.get() == 410, "the site of before")
        until(lambda: place.state_of(plan) == "rolled_back", "the change undone")


@pytest.mark.parametrize("first", [True, False])
def test_a_killed_helper_s_change_is_undone(place, first):
    """Also the first one, after which there is no nginx."""
    place.settings["confirm_within_s"] = 3
    with place.running() as helper:
        if not first:
            place.applied(place.intent(shop(410)), kind="nginx")
        begun(place, place.intent(shop(404)))
        assert place.get() == 404
        helper.kill()
        helper.wait()
        until(lambda: place.get() == (0 if first else 410), "what was before")


def test_a_bad_bind_rolls_back_and_the_old_site_answers_200(place):
    with place.running(), nginxes.backend("app") as app:
        site = nginxes.site(upstream={"scheme": "http", "host": "127.0.0.1", "port": app.port})
        place.applied(place.intent(site), kind="nginx")
        assert place.get() == 200
        # Approved while the port was free: the review depends on what is ours alone.
        intent = place.intent(shop(404))
        intent["listen"]["http"] = nginxes.ports(1)[0]
        plan = place.approved(intent, kind="nginx")
        with nginxes.taken(intent["listen"]["http"]):
            answer = place.ask(protocol.Apply(plan=plan))
            assert answer.code in {"apply_failed", "intent_refused"}, answer
            assert place.get() == 200


def test_switching_a_site_off_needs_no_approval_and_on_again_within_it_neither(place):
    with place.running():
        place.applied(place.intent(shop(410), nginxes.site("wiki", answer=404)), kind="nginx")
        off = place.offer(place.intent({**shop(410), "enabled": False}, nginxes.site("wiki", answer=404)), kind="nginx")
        answer = place.ask(protocol.Apply(plan=off), user=apply_helpers.DAEMON)
        assert answer.state == "applied", answer
        assert (place.get(), place.get("wiki.example.org")) == (503, 404)
        wider = place.offer(place.intent(shop(410), nginxes.site("wiki", answer=410)), kind="nginx")
        assert place.ask(protocol.Apply(plan=wider), user=apply_helpers.DAEMON).code == "not_approved"


def test_a_certificate_that_comes_later_and_one_that_is_renewed_are_taken_up_by_the_same_plan(place):
    """What the plugin asks for, as the daemon's user, without an approval."""
    live = place.web / "live"
    site = nginxes.site(answer=410, tls=nginxes.tls(live=str(live), force=False))

    def serial(authorities):
        context = ssl.create_default_context(cadata=authorities.cert_pem.bytes().decode())
        with (
            socket.create_connection(("127.0.0.1", place.ports[1]), timeout=20) as raw,
            context.wrap_socket(raw, server_hostname="shop.example.org") as wrapped,
        ):
            return wrapped.getpeercert()["serialNumber"]

    def issued(authorities):
        made = authorities.issue_cert("shop.example.org")
        (live / "shop").mkdir(parents=True, exist_ok=True)
        made.private_key_pem.write_to_path(live / "shop" / "privkey.pem")
        (live / "shop" / "fullchain.pem").write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))

    def seen():
        (one,) = json.loads(json.dumps(place.observed(kind="nginx").live))["sites"]
        return one["served"], one["due"]

    with place.running():
        plan = place.applied(place.intent(site), kind="nginx")
        assert (place.get(), seen()) == (503, (False, False))
        serials = set()
        for served in (False, True):
            authorities = trustme.CA()
            issued(authorities)
            assert seen() == (served, True)
            answer = place.ask(protocol.Apply(plan=plan), user=apply_helpers.DAEMON)
            assert answer.state == "applied", answer
            assert (place.get(), seen()) == (410, (True, False))
            serials.add(serial(authorities))
        assert len(serials) == 2
