"""HTTP requests that other parsers are tested with, to a proxied service: none smuggles another one past the login.

Each row is aimed at the service: its target becomes a path there, and its Host, if it has exactly one, that of the
listener. A request without login is sent right behind it on the same connection.
"""

from __future__ import annotations

import base64

import pytest

from tests.house import backends, corpora, routed
from tests.house.routed import ID

ROWS = corpora.rows("http_requests.json")
TOKEN = "a-token-for-subscriptions"
PROBE = "/api/probe.of.step"


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


@pytest.fixture
async def world(tmp_path, backend):
    async with routed.opened(tmp_path) as found:
        await found.secrets.set("FEED", TOKEN)
        await found.secrets.bind("FEED", ID)
        await found.serve(backend, public=["/download/*/*"], token="${secret:FEED}")
        yield found


FORMS = {
    "without login": f"/{ID}/api/utils/env",
    "public": f"/{ID}/download/a/b?token={TOKEN}",
    "logged in": f"/{ID}/api/settings",
}


@pytest.mark.parametrize("form", FORMS)
async def test_no_byte_behind_a_request_reaches_the_service_without_login(world, backend, form):
    """What the rows hold reaches it at most as the one request that was let through; 5xx answers none."""
    host, fields = f"Host: {routed.HOST}:{world.port()}", []
    if form == "logged in":
        fields = [await world.cookie(), world.here]
    probe = f"GET /{ID}{PROBE} HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n".encode()
    passed = 0
    for row in ROWS:
        backend.seen.clear()
        sent = corpora.aimed(base64.b64decode(row["raw_b64"]), FORMS[form], host, *fields)
        answers = await world.send(sent + probe)
        shown = (row["id"], sent[:300], answers, backend.seen)
        below = FORMS[form].removeprefix(f"/{ID}").partition("?")[0]
        if form == "without login":
            assert backend.seen == [], shown
        else:
            assert [one.path for one in backend.seen] in ([], [below]), shown
            passed += len(backend.seen)
        assert all(200 <= answer.status < 500 for answer in answers), shown
        # In step: the request behind gets its own refusal or none, and nothing more is answered.
        assert len(answers) <= 2, shown
        assert all(answer.status in {400, 401} for answer in answers[1:]), shown
    assert (passed > 0) == (form != "without login"), f"{passed} were let through"
