"""latticectl ui of a user who may do little: each refusal is on record, so what was refused is not asked for again."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest

from tests.house import bundles, consoles, daemons

pytestmark = [pytest.mark.daemon, pytest.mark.slow, pytest.mark.root]

ID = "acme.demo"
OWN_USER = "[access]\nown_user = false\n"
AGAIN = {"Latticed-Live": "1"}
"""What a page sends that asks for itself again."""


def _refused(daemon) -> Counter[str]:
    return Counter(one["target"] for one in daemon.events(action="api.refused"))


@pytest.fixture(scope="module")
def read_only():
    """A daemon with a plugin, and a console of a user with the scope `read`, as the packaged unit's."""
    acme = bundles.author("acme")
    with daemons.placed() as place:
        place.set(f'{OWN_USER}[access.users]\n{place.uid} = ["read"]\n')
        place.trust_us(acme)
        place.drop("demo", author=acme, id=ID)
        with place.running() as daemon:
            daemon.until(lambda: daemon.plugin(ID), "the plugin to be seen")
            with consoles.running(daemon) as console:
                console.enter()
                yield daemon, console


def test_a_console_without_a_scope_asks_for_events_once_for_each_page_that_listens():
    """It asked again every five seconds for as long as it ran, also with no page open."""
    with daemons.placed(settings=OWN_USER) as place, place.running() as daemon, consoles.running(daemon) as console:
        console.enter()
        for asked in (1, 2):
            with consoles.listening(console) as stream:
                while not (line := stream.readline()).startswith(b"data:"):
                    assert line
                assert json.loads(line[5:])["daemon"] == "denied"
                assert _refused(daemon)["GET /api/events"] == asked


@pytest.mark.parametrize("page", ["/audit", "/tasks", "/notifications", "/market/acme.demo"])
def test_a_page_of_what_is_refused_is_not_live(read_only, page: str):
    _, console = read_only
    seen = console.get(page)
    assert "access_denied" in seen.text
    assert 'data-live=""' in seen.text


def test_the_log_that_is_refused_is_not_followed(read_only):
    _, console = read_only
    seen = console.get(f"/plugins/{ID}/logs")
    assert "access_denied" in seen.text
    assert "data-follow" not in seen.text


@pytest.mark.parametrize("page", ["/audit", "/", f"/plugins/{ID}", "/health"])
def test_a_page_that_asks_for_itself_again_does_not_ask_for_what_was_refused(read_only, page: str):
    """A refusal is an event, at which pages ask for themselves again: they did so without an end."""
    daemon, console = read_only
    console.get(page)
    before = _refused(daemon)
    for _ in range(3):
        assert console.get(page, **AGAIN).status == 200
    assert _refused(daemon) == before


def test_a_page_that_somebody_opens_asks_for_what_was_refused(read_only):
    """The scope may have been given since."""
    daemon, console = read_only
    place = daemon.place
    assert "access_denied" in console.get("/tasks").text
    place.set(f'{OWN_USER}[access.users]\n{place.uid} = ["read", "operate"]\n')
    daemon.signal(signal.SIGHUP)
    daemon.until(lambda: "access_denied" not in console.get("/tasks").text, "the page of tasks")
