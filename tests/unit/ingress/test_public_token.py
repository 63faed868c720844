"""Public paths of a proxied service that open with a token: which requests get through, and what the service sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.route import public_token
from tests.house import backends, routed
from tests.house.routed import ID, echoed

TOKEN = "s3cret-Subscription_token.1"
FEED = f"/{ID}/download/mine/Clash"
PUBLIC = {"public": ["/download/*/*"], "token": "${secret:FEED}"}


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


@pytest.fixture
async def world(tmp_path, backend):
    async with routed.opened(tmp_path) as found:
        await found.secrets.set("FEED", TOKEN)
        await found.secrets.bind("FEED", ID)
        await found.serve(backend, **PUBLIC)
        yield found


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_request_with_the_token_needs_no_login_and_arrives_without_its_query(world, backend, method):
    """Sub-Store would fetch `url` for whoever asks; no shared cache may keep the answer."""
    answer = await world.ask(method, f"{FEED}?url=http%3A%2F%2Fother.example%2F&token={TOKEN}&$options=x")
    assert answer.status == 200
    assert backend.paths == ["/download/mine/Clash"]
    assert answer.headers["vary"] == "Cookie"
    assert answer.headers["cache-control"] == "private"


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?token=",
        f"?token={TOKEN[:-1]}",
        f"?token={TOKEN}x",
        f"?token={TOKEN.upper()}",
        f"?Token={TOKEN}",
        f"?token[]={TOKEN}",
        f"?token={TOKEN}&token={TOKEN}",
        f"?token={TOKEN}&token=x",
        f"?token=x&%74oken={TOKEN}",
        f"?token={TOKEN}%00",
        f"?a=%26token={TOKEN}",
        "?token=%F0%9F%98%80",
    ],
)
async def test_request_without_exactly_the_token_needs_a_login(world, backend, query):
    answer = await world.get(FEED + query)
    assert answer.status in {400, 401}
    assert backend.seen == []


@pytest.mark.parametrize("path", ["/api/utils/env", "/api/settings", "/download/mine", "/download/a/b/c", "/"])
async def test_token_opens_public_paths_only(world, backend, path):
    assert (await world.get(f"/{ID}{path}?token={TOKEN}")).status == 401
    assert backend.seen == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_token_is_for_reading_only(world, backend, method):
    assert (await world.ask(method, f"{FEED}?token={TOKEN}")).status == 401
    assert backend.seen == []


async def test_logged_in_user_needs_no_token(world):
    """With a session the whole query is the service's own."""
    answer = await world.get(f"{FEED}?token=of-its-own", await world.cookie())
    assert echoed(answer)["path"] == "/download/mine/Clash?token=of-its-own"


async def test_changed_or_unbound_token_is_refused_at_once(world, backend):
    """It is compared with the secret as it is now."""
    other = TOKEN[::-1]
    await world.secrets.set("FEED", other)
    assert (await world.get(f"{FEED}?token={TOKEN}")).status == 401
    assert (await world.get(f"{FEED}?token={other}")).status == 200
    await world.secrets.unbind("FEED", ID)
    assert (await world.get(f"{FEED}?token={other}")).status == 401
    assert backend.paths == ["/download/mine/Clash"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"token": TOKEN}, "token: expected a reference"),
        ({"token": "${secret:OTHER}"}, "the operator has bound no secret"),
        ({"token": "${secret:SHORT}"}, "token: ${secret:SHORT}: expected 20 to 128 of"),
        ({"public": []}, "token: expected the paths that it opens"),
    ],
)
async def test_route_with_unusable_token_is_refused_and_the_old_one_stays(world, backend, change, word):
    await world.secrets.set("SHORT", "too-short-a-token")
    await world.secrets.bind("SHORT", ID)
    wanted = {"path": f"/{ID}/", "target": "service", "origin": backend.origin, "login": "${secret:WEB}", **PUBLIC}
    error = await world.refused(**{**wanted, **change})
    assert (error.code, word in error.reason) == ("bad_params", True), error
    assert TOKEN not in error.reason
    assert (await world.get(f"{FEED}?token={TOKEN}")).status == 200


async def test_listed_route_tells_that_it_has_a_token_and_not_which(world):
    (listed,) = world.keeper.every()
    shown = world.keeper.view(listed)
    assert shown["token"] is True
    assert "FEED" not in str(shown)


async def test_answer_without_a_login_has_a_challenge_that_no_browser_prompts_for(world):
    """RFC 9110, section 15.5.2: a 401 has one. `Basic`, `Digest`, `Negotiate` and `NTLM` would open a dialog."""
    answer = await world.get(f"/{ID}/api/utils/env")
    assert (answer.status, answer.code) == (401, "login_required")
    assert answer.headers["www-authenticate"] == 'Cookie form-action="/.latticed/login"'


# The rule.


@given(
    before=st.lists(st.sampled_from(["a", "a=1", "", "tokens=x", "=token", "a=token"])),
    spelt=st.sampled_from(["token", "%74oken", "to%6Ben"]),
)
def test_token_is_found_by_its_decoded_name_and_only_once(before, spelt):
    query = "?" + "&".join([*before, f"{spelt}={TOKEN}"])
    assert public_token.given(query) == TOKEN
    assert public_token.given(f"{query}&token=") is None
